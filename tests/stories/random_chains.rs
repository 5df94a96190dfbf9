//! Chains of incremental backups over random changes. On PostgreSQL 17 and 18 each equals what the server's own
//! `pg_combinebackup` makes, but for blocks that this brings back although they were cut off, and so does the full backup
//! that is made of it; before that each equals a full backup that is taken right behind it. Everywhere a server that is
//! started from it has the right rows.
//!
//! `SEED` replays a history.

mod workload;

use harness::{PostgresServer, ProtectedCluster, Random, from_environment};

use crate::chains::{
    backup, chain_equals_combined, chain_equals_full, compare, consolidate, create_tablespace, parent_of, restore,
    start, verify,
};
use workload::{change, content, prepare};

/// Takes a full backup and then others, each with changes before it and sometimes during it. Returns their ids.
fn take_chain(cluster: &mut ProtectedCluster, random: &mut Random, length: usize, changes: usize) -> Vec<String> {
    create_tablespace(cluster);
    prepare(cluster.server());
    let mut ids = vec![backup(cluster, "--full")];
    for _ in 1..length {
        let count = 1 + random.below(2 * changes);
        change(cluster.server(), random, count);
        match random.below(8) {
            0 => crash(cluster),
            1 => cluster.server_mut().restart(),
            _ => {}
        }
        let kind = if random.below(8) == 0 { "--differential" } else { "--incremental" };
        let meanwhile = if random.below(3) == 0 { 3 } else { 0 };
        let id = std::thread::scope(|scope| {
            scope.spawn(|| change(cluster.server(), random, meanwhile));
            backup(cluster, kind)
        });
        println!("{id} on {}", parent_of(cluster, &id).unwrap());
        ids.push(id);
    }
    ids
}

fn crash(cluster: &mut ProtectedCluster) {
    println!("crash");
    cluster.server_mut().kill9();
    cluster.server_mut().start();
}

fn chains_equal_those_of_the_server(major: u32, random: &mut Random, length: usize, changes: usize) {
    let mut cluster = start(major);
    let ids = take_chain(&mut cluster, random, length, changes);
    let expected = content(cluster.server());
    let newest = ids.last().unwrap();
    let earlier = &ids[random.below(ids.len() - 1)];
    let directories = [earlier, newest].map(|id| chain_equals_combined(&cluster, id));
    // Over what another backup of the chain made.
    let ours = &directories[0];
    cluster.restore().args(["--quiet", "base", "--delta", "--backup", newest, "--to"]).arg(ours).succeed();
    verify(&cluster, ours);
    assert_eq!(compare(ours, &directories[1]), 0);
    let made = consolidate(&cluster, newest);
    assert_eq!(compare(&restore(&cluster, "consolidated", &made), &directories[1]), 0);
    let mut server = PostgresServer::start_restored(ours, major);
    server.wait_until_promoted();
    assert_eq!(content(&server), expected);
}

fn chains_equal_a_full_backup(major: u32, random: &mut Random, length: usize, changes: usize) {
    let mut cluster = start(major);
    take_chain(&mut cluster, random, length, changes);
    let expected = content(cluster.server());
    let mut server = PostgresServer::start_restored(chain_equals_full(&cluster), major);
    server.wait_until_paused();
    assert_eq!(content(&server), expected);
}

fn chains_are_right(major: u32, random: &mut Random, length: usize, changes: usize) {
    println!("PostgreSQL {major}, {length} backups");
    match major {
        17.. => chains_equal_those_of_the_server(major, random, length, changes),
        _ => chains_equal_a_full_backup(major, random, length, changes),
    }
}

#[test]
fn e01_e10_e17_random_chains_of_15_are_right() {
    chains_are_right(15, &mut Random::from_environment(), 4, 6);
}

#[test]
fn e01_e10_e17_random_chains_of_18_are_right() {
    chains_are_right(18, &mut Random::from_environment(), 4, 6);
}

/// `ROUNDS` times over each version, or over the one that `MAJOR` names.
#[test]
#[ignore = "long: make soak"]
fn soak_e01_e10_e17_random_chains_are_right() {
    let first: u64 = from_environment("SEED", u64::from(std::process::id()));
    let majors = std::env::var("MAJOR").map_or((13..=18).collect(), |major| vec![major.parse().unwrap()]);
    for round in 0..from_environment("ROUNDS", 5) {
        for major in &majors {
            let mut random = Random::new(first + round);
            let length = 2 + random.below(9);
            chains_are_right(*major, &mut random, length, 10);
        }
    }
}
