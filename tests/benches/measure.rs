//! Wall time, CPU time of the tool and of the server, memory and stored bytes of one run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::TestUser;

/// Ticks of `/proc/PID/stat` in a second: fixed for every architecture that Linux has.
const TICKS_A_SECOND: u64 = 100;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurement {
    pub(crate) wall: Duration,
    /// Of the tool with all its processes, and of the server where there is one.
    pub(crate) cpu: Duration,
    /// Of all processes of the tool together.
    pub(crate) peak_memory_bytes: u64,
    pub(crate) stored_bytes: u64,
}

/// Runs a command as the unprivileged user and measures it; it must succeed.
pub(crate) fn measure(command: &mut Command, server: Option<u32>, out: &Path) -> Measurement {
    TestUser::get().run(command).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let server_before = server.map_or(0, tree_ticks);
    let own_before = children_ticks(std::process::id());
    let started = Instant::now();
    let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let done = Arc::new(AtomicBool::new(false));
    let sampler = std::thread::spawn({
        let (done, pid) = (Arc::clone(&done), child.id());
        move || {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(tree(pid).iter().map(|pid| resident_bytes(*pid)).sum());
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        }
    });
    let outcome = child.wait_with_output().expect("the child is ours");
    let wall = started.elapsed();
    done.store(true, Ordering::Relaxed);
    let peak_memory_bytes = sampler.join().unwrap_or(0);
    assert!(outcome.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&outcome.stderr));
    let ticks = children_ticks(std::process::id()) - own_before
        + server.map_or(0, |pid| tree_ticks(pid).saturating_sub(server_before));
    Measurement {
        wall,
        cpu: Duration::from_millis(ticks * 1000 / TICKS_A_SECOND),
        peak_memory_bytes,
        stored_bytes: stored_bytes(out),
    }
}

/// CPU time that a process has taken until now, without its children.
#[allow(dead_code, reason = "each benchmark takes what it needs")]
pub(crate) fn own_cpu(pid: u32) -> Duration {
    let ticks: u64 = stat(pid).get(11..13).map_or(0, |times| times.iter().sum());
    Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
}

/// Fields of `/proc/PID/stat` behind the name: state is the first.
fn stat(pid: u32) -> Vec<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
}

fn children_ticks(pid: u32) -> u64 {
    stat(pid).get(13..15).map_or(0, |times| times.iter().sum())
}

/// A process and its descendants, with those that have ended.
fn tree_ticks(root: u32) -> u64 {
    tree(root).into_iter().map(|pid| stat(pid).get(11..15).map_or(0, |times| times.iter().sum())).sum()
}

/// Only its own processes are looked at: reading all of `/proc` fifty times a second would slow down what is measured.
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        next += 1;
    }
    found
}

fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn stored_bytes(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| stored_bytes(&entry.path())).sum()
}

/// Medians of each variant, and their ratios to one of them.
pub(crate) struct Table {
    title: &'static str,
    reference: &'static str,
    rows: Vec<(&'static str, Vec<Measurement>)>,
}

impl Table {
    pub(crate) fn new(title: &'static str, reference: &'static str) -> Self {
        Self { title, reference, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, variant: &'static str, measurement: Measurement) {
        match self.rows.iter_mut().find(|(name, _)| *name == variant) {
            Some((_, runs)) => runs.push(measurement),
            None => self.rows.push((variant, vec![measurement])),
        }
    }

    pub(crate) fn print(&self) {
        let medians: Vec<(&str, Measurement)> = self.rows.iter().map(|(name, runs)| (*name, medians(runs))).collect();
        let Some(reference) = medians.iter().find(|(name, _)| *name == self.reference).map(|(_, median)| *median)
        else {
            return;
        };
        println!("\n### {}\n", self.title);
        println!("| variant | runs | wall ms | CPU ms | peak MiB | stored MB | wall | CPU | stored |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for ((name, median), (_, runs)) in medians.iter().zip(&self.rows) {
            println!(
                "| {name} | {} | {:.0} | {:.0} | {} | {:.1} | {:.2} | {:.2} | {:.3} |",
                runs.len(),
                median.wall.as_secs_f64() * 1000.0,
                median.cpu.as_secs_f64() * 1000.0,
                median.peak_memory_bytes >> 20,
                median.stored_bytes as f64 / 1e6,
                median.wall.as_secs_f64() / reference.wall.as_secs_f64(),
                median.cpu.as_secs_f64() / reference.cpu.as_secs_f64().max(0.001),
                median.stored_bytes as f64 / reference.stored_bytes.max(1) as f64,
            );
        }
        println!("\nRatios are to {}.", self.reference);
    }
}

fn medians(runs: &[Measurement]) -> Measurement {
    let median = |value: fn(&Measurement) -> u64| {
        let mut values: Vec<u64> = runs.iter().map(value).collect();
        values.sort_unstable();
        let middle = |index: usize| values.get(index).copied().unwrap_or_default();
        (middle(runs.len().saturating_sub(1) / 2) + middle(runs.len() / 2)) / 2
    };
    let median_time = |value: fn(&Measurement) -> u64| Duration::from_micros(median(value));
    Measurement {
        wall: median_time(|run| run.wall.as_micros() as u64),
        cpu: median_time(|run| run.cpu.as_micros() as u64),
        peak_memory_bytes: median(|run| run.peak_memory_bytes),
        stored_bytes: median(|run| run.stored_bytes),
    }
}
