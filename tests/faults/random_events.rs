//! `pgark-agent run` through promotions, restarts, crashes, cut networks and lost slots in random order, under load.
//!
//! The judge is `list`: a gap is named there or there is none, each mark that lies in a window is what a restore to it
//! gives, and each one that lies in no window is refused. `SEED` replays a sequence.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Action, Fault, FaultProxy, Program, ProtectedCluster, Random, RunningProgram, Trigger, wait_until};
use serde_json::Value;

use crate::receiving;

const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The server stops in order and starts again.
    Restart,
    /// The server and all that it had not flushed are gone; it recovers.
    Crash,
    /// A standby of itself takes over: the next timeline.
    Promotion,
    /// The agent reaches the server no more for a while.
    Cut,
    /// As before, and meanwhile somebody drops the slot and the server removes the WAL that it held.
    SlotDropped,
    /// The agent dies and is started again.
    AgentKilled,
}

const EVENTS: [Event; 6] =
    [Event::Restart, Event::Crash, Event::Promotion, Event::Cut, Event::SlotDropped, Event::AgentKilled];

/// A row that was committed before a position and after all rows with smaller numbers.
#[derive(Clone, Copy, Debug)]
struct Mark {
    number: u64,
    timeline: u64,
    position: u64,
}

struct History {
    cluster: ProtectedCluster,
    proxy: FaultProxy,
    config: PathBuf,
    run: Option<RunningProgram>,
    timeline: u64,
    marks: Vec<Mark>,
    /// What all agents have said.
    messages: String,
    cut: Duration,
}

impl History {
    fn start(cut: Duration) -> Self {
        let cluster = ProtectedCluster::builder()
            .server(|server| {
                let server = server.tcp().wal_segment_megabytes(1).setting("autovacuum", "off");
                // Nothing but the slot holds WAL back.
                server.setting("min_wal_size", "2MB").setting("max_wal_size", "16MB").setting("wal_keep_size", "0")
            })
            .settings("[compression]\nlevel = 1\n")
            .without_archiving()
            .start();
        let proxy = FaultProxy::to_postgres(cluster.server());
        let config = fs::read_to_string(cluster.config()).unwrap();
        let config = config.replace(&cluster.server().connection_string(), &proxy.connection_string());
        let config = cluster.dir().write("proxy.toml", config);
        cluster.server().init_pgbench(1);
        cluster.server().psql("CREATE TABLE marks (number bigint)");
        let (marks, messages) = (Vec::new(), String::new());
        let mut history = Self { cluster, proxy, config, run: None, timeline: 1, marks, messages, cut };
        history.start_run();
        history.cluster.backup();
        history
    }

    fn start_run(&mut self) {
        let agent = Program::agent().config(&self.config).as_test_user();
        self.run = Some(agent.arg("run").limit(Duration::from_secs(7200)).start());
    }

    fn mark(&mut self) {
        let number = self.marks.len() as u64 + 1;
        let server = self.cluster.server();
        server.psql(&format!("INSERT INTO marks VALUES ({number})"));
        let position = position(&server.psql("SELECT pg_current_wal_insert_lsn()"));
        self.marks.push(Mark { number, timeline: self.timeline, position });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Restart => self.cluster.server_mut().restart(),
            Event::Crash => {
                self.cluster.server_mut().kill9();
                self.cluster.server_mut().start();
            }
            Event::Promotion => {
                self.cluster.server_mut().stop_fast();
                fs::write(self.cluster.server().data_dir().join("standby.signal"), "").unwrap();
                self.cluster.server().own_data_dir();
                self.cluster.server_mut().start();
                self.cluster.server_mut().promote();
                self.cluster.server_mut().wait_until_promoted();
                self.timeline += 1;
            }
            Event::Cut => {
                self.cut();
                std::thread::sleep(self.cut);
                self.proxy.clear();
            }
            Event::SlotDropped => {
                self.cut();
                let server = self.cluster.server();
                wait_until("the slot to be free", LIMIT, || {
                    server.try_psql("SELECT pg_drop_replication_slot('pgark')").is_ok().then_some(())
                });
                for _ in 0..4 {
                    self.mark();
                    self.cluster.server().psql("SELECT FROM pg_switch_wal()");
                    self.cluster.server().psql("CHECKPOINT");
                }
                self.proxy.clear();
            }
            Event::AgentKilled => {
                if let Some(run) = self.run.take() {
                    self.messages.push_str(&run.kill9().stderr);
                }
                self.start_run();
            }
        }
    }

    fn cut(&self) {
        self.proxy.add(Fault::always(Trigger::Connect, Action::Reset));
        self.proxy.cut_all();
    }

    /// Waits until everything that the server has written is in the repository.
    fn settle(&self) {
        receiving::wait_until_flushed(LIMIT, self.cluster.server());
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.cluster.restore().args(["list", "--json"]).succeed().stdout).unwrap()
    }

    fn target(&self, mark: &Mark) -> [String; 5] {
        let position = format!("{:X}/{:X}", mark.position >> 32, mark.position & 0xFFFF_FFFF);
        ["--target-lsn", &position, "--target-timeline", &mark.timeline.to_string(), "--target-action=promote"]
            .map(str::to_owned)
    }

    /// Each mark is in a window and can be restored, or behind a named gap and is refused. Returns how many are lost.
    fn judge(&self) -> usize {
        self.cluster.age_archive();
        let list = self.list();
        let windows: Vec<Window> = list["windows"].as_array().unwrap().iter().map(Window::of).collect();
        let mut lost = 0;
        for mark in &self.marks {
            let is_promised = windows.iter().any(|window| window.holds(mark));
            let dry = self.cluster.restore().args(["base", "--dry-run", "--to"]).arg(self.cluster.dir().join("none"));
            let dry = dry.args(self.target(mark));
            if is_promised {
                dry.succeed();
                continue;
            }
            lost += 1;
            let is_named = windows.iter().any(|window| window.gap_at.is_some_and(|gap| gap <= mark.position));
            assert!(is_named, "{mark:?} is in no window, and no gap before it is named: {list:#}");
            dry.fail_with(3);
        }
        lost
    }

    /// What is promised is what a restore gives: the last mark of each window, and the first.
    fn restore_from_each_window(&self) -> usize {
        let list = self.list();
        let windows = list["windows"].as_array().unwrap().iter().map(Window::of);
        let mut chosen: Vec<&Mark> = Vec::new();
        for window in windows {
            let mut inside = self.marks.iter().filter(|mark| window.holds(mark));
            let first = inside.next();
            chosen.extend(inside.next_back().or(first));
        }
        chosen.sort_by_key(|mark| mark.number);
        chosen.dedup_by_key(|mark| mark.number);
        for mark in &chosen {
            let name = format!("restored-{}", mark.number);
            let mut restored = self.cluster.restore_and_start(&name, &self.target(mark));
            restored.wait_until_promoted();
            assert_eq!(restored.psql("SELECT count(*), max(number) FROM marks"), format!("{0}|{0}", mark.number));
            drop(restored);
            fs::remove_dir_all(self.cluster.dir().join(&name)).unwrap();
        }
        chosen.len()
    }
}

/// From which position to which one on a timeline `list` promises every moment.
struct Window {
    timeline: u64,
    from: u64,
    to: u64,
    gap_at: Option<u64>,
}

impl Window {
    fn of(json: &Value) -> Self {
        let text = |key: &str| json[key].as_str().unwrap();
        let gap_at = json["gap_at"].as_str().map(|segment| {
            let number = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
            (number(&segment[8..16]) << 32) + (number(&segment[16..24]) << 20)
        });
        let timeline = json["timeline"].as_u64().unwrap();
        Self { timeline, from: position(text("from_lsn")), to: position(text("to_lsn")), gap_at }
    }

    /// A later window of the same history goes through the timelines before it too, but marks ask for their own.
    fn holds(&self, mark: &Mark) -> bool {
        self.timeline == mark.timeline && (self.from..self.to).contains(&mark.position)
    }
}

fn position(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    let number = |digits| u64::from_str_radix(digits, 16).unwrap();
    (number(high) << 32) + number(low)
}

/// Every event once in random order, and then more of them.
fn sequence(random: &mut Random, more: usize) -> Vec<Event> {
    let mut events = EVENTS.to_vec();
    for last in (1..events.len()).rev() {
        events.swap(last, random.below(last + 1));
    }
    events.extend((0..more).map(|_| random.choose(&EVENTS)));
    events
}

fn random_events(more: usize, cut: Duration) {
    let mut random = Random::from_environment();
    let mut history = History::start(cut);
    for event in sequence(&mut random, more) {
        let load = history.cluster.server().start_pgbench(2);
        for _ in 0..=random.below(3) {
            history.mark();
            std::thread::sleep(Duration::from_millis(300 + random.below(1000) as u64));
        }
        println!("{event:?} on timeline {} after mark {}", history.timeline, history.marks.len());
        history.happen(event);
        load.stop_anyhow();
        history.mark();
        if event == Event::SlotDropped {
            // A gap asks for a new backup, which most give it at once and some only later.
            let run = history.run.as_ref().unwrap();
            receiving::wait_for_message(run, "take a new backup now");
            if random.below(4) > 0 {
                history.settle();
                history.cluster.backup();
                history.mark();
            }
        }
    }
    history.settle();
    history.cluster.backup();
    history.mark();
    // Something has to follow a target.
    history.cluster.server().psql("SELECT FROM pg_switch_wal()");
    history.settle();
    let run = history.run.take().unwrap();
    history.messages.push_str(&receiving::stop(run));

    let lost = history.judge();
    let restored = history.restore_from_each_window();
    println!("{} marks, {lost} behind named gaps, {restored} windows restored", history.marks.len());
    assert!(restored >= 2, "{:#}", history.list());
    assert!(history.messages.contains("take a new backup now"), "{}", history.messages);
}

#[test]
fn a37_a38_a40_random_events_leave_no_gap_that_is_not_named() {
    random_events(0, Duration::from_secs(3));
}

#[test]
#[ignore = "long: make soak"]
fn soak_a37_a38_a40_random_events_leave_no_gap_that_is_not_named() {
    random_events(60, Duration::from_secs(30));
}
