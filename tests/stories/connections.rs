//! What a user sees when the agent cannot connect: one sentence, and the statement or line that mends it, which then
//! does.

use std::fs;
use std::time::Duration;

use harness::{CertificateAuthority, Outcome, PostgresServer, Program, TempDir, local_repository, wait_until};

struct Story {
    server: PostgresServer,
    dir: TempDir,
}

impl Story {
    fn start() -> Self {
        let dir = TempDir::for_test_user("connections");
        let authority = CertificateAuthority::new(&dir, "root");
        CertificateAuthority::new(&dir, "other");
        authority.expired_server("expired", &["db.test"]);
        let server = PostgresServer::builder()
            .tls(&authority.server("server", &["db.test"]), &authority)
            .hba("hostssl postgres,replication keeper 127.0.0.1/32 scram-sha-256")
            .hba("hostssl postgres,replication powerless 127.0.0.1/32 scram-sha-256")
            .hba("host replication stranger 127.0.0.1/32 reject")
            .hba("hostssl replication halfway 127.0.0.1/32 scram-sha-256")
            .hba("host postgres halfway 127.0.0.1/32 reject")
            .start();
        server.psql(
            "SET password_encryption = 'scram-sha-256';
             CREATE ROLE keeper LOGIN REPLICATION PASSWORD 's3cret';
             CREATE ROLE stranger LOGIN REPLICATION PASSWORD 's3cret';
             CREATE ROLE halfway LOGIN REPLICATION PASSWORD 's3cret';
             CREATE ROLE powerless LOGIN PASSWORD 's3cret';
             GRANT pg_read_all_settings TO keeper, powerless",
        );
        Self { server, dir }
    }

    fn backup(&self, connection: &str) -> Program {
        self.agent(connection).args(["--quiet", "backup"])
    }

    fn agent(&self, connection: &str) -> Program {
        let repository = local_repository(&self.dir, "local", "repository");
        let state = self.dir.create_dir("state");
        let config = self.dir.write(
            "config.toml",
            format!(
                "state_dir = \"{}\"\n[cluster]\nname = \"main\"\nconnection = \"{connection}\"\n{repository}",
                state.display()
            ),
        );
        Program::agent().config(&config).as_test_user()
    }

    /// Over TCP as `user`, checked in full.
    fn over_tls(&self, user: &str, rest: &str) -> String {
        format!(
            "host=db.test hostaddr=127.0.0.1 port={} user={user} sslmode=verify-full sslrootcert={} {rest}",
            self.server.port(),
            self.dir.join("root.crt").display()
        )
    }

    /// The agent must fail with these words, in few lines, and without the password.
    fn refused(&self, connection: &str, code: i32, words: &[&str]) -> Outcome {
        let outcome = self.backup(connection).fail_with(code);
        for word in words {
            assert!(outcome.stderr.contains(word), "{connection}: no {word:?} in {}", outcome.stderr);
        }
        assert!(!outcome.stderr.contains("s3cret"), "{}", outcome.stderr);
        assert!(outcome.stderr.lines().count() <= 3, "{}", outcome.stderr);
        outcome
    }

    fn restart_with(&mut self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.server.alter_system(name, value);
        }
        self.server.restart();
    }
}

#[test]
fn a23_what_the_server_lacks_is_said_with_the_statement_that_mends_it() {
    let mut story = Story::start();
    let keeper = story.over_tls("keeper", "password=s3cret channel_binding=require");

    let powerless = story.over_tls("powerless", "password=s3cret");
    let statement = "ALTER ROLE \"powerless\" REPLICATION;";
    story.refused(&powerless, 1, &["role \"powerless\" may not open replication connections", statement]);
    story.server.psql(statement);
    story.backup(&powerless).succeed();

    let stranger = story.over_tls("stranger", "password=s3cret");
    let line = "hostssl replication stranger 127.0.0.1/32 scram-sha-256";
    story.refused(&stranger, 1, &["pg_hba.conf does not allow this connection of \"stranger\"", line]);
    let plain = format!("host=127.0.0.1 port={} user=stranger sslmode=disable", story.server.port());
    story.refused(&plain, 1, &["\"host replication stranger 127.0.0.1/32 scram-sha-256\"", "hostssl"]);
    let hba = story.server.data_dir().join("pg_hba.conf");
    fs::write(&hba, format!("{line}\n{}", fs::read_to_string(&hba).unwrap())).unwrap();
    story.server.psql("SELECT pg_reload_conf();");
    let limit = Duration::from_secs(30);
    wait_until("the new line", limit, || (story.backup(&stranger).run().code == Some(0)).then_some(()));

    let halfway = story.over_tls("halfway", "password=s3cret");
    let line = "hostssl postgres halfway 127.0.0.1/32 scram-sha-256";
    story.refused(&halfway, 1, &["cannot open an ordinary connection to database \"postgres\"", line]);

    story.restart_with(&[("max_wal_senders", "1")]);
    let statement = "ALTER SYSTEM SET max_wal_senders = '6';";
    story.refused(
        &keeper,
        1,
        &["no replication connection left (max_wal_senders = 1)", statement, "restart the server"],
    );
    story.server.psql(statement);
    story.server.restart();

    story.restart_with(&[("max_replication_slots", "0")]);
    let said = story.agent(&keeper).arg("backup").succeed().stderr;
    let statement = "ALTER SYSTEM SET max_replication_slots = '5';";
    assert!(said.contains("no replication slot is free") && said.contains(statement), "{said}");
    story.server.psql(statement);
    story.server.restart();

    story.restart_with(&[("wal_level", "minimal"), ("max_wal_senders", "0")]);
    let statements = "ALTER SYSTEM SET wal_level = 'replica'; ALTER SYSTEM SET max_wal_senders = '10';";
    story.refused(&keeper, 1, &["allows no replication connection", statements, "restart the server"]);
    story.server.psql(statements);
    story.server.restart();
    assert_eq!(story.backup(&keeper).succeed().stderr, "");
}

#[test]
fn a54_who_is_not_who_it_should_be_is_said_so() {
    let mut story = Story::start();
    story.refused(&story.over_tls("keeper", ""), 1, &["asks for a password of \"keeper\"", ".pgpass", "PGPASSWORD"]);
    let wrong = story.over_tls("keeper", "password=wrong");
    story.refused(&wrong, 1, &["refused to log in user \"keeper\"", "check the password of keeper"]);
    let other = story.dir.join("other.crt");
    let good = story.over_tls("keeper", "password=s3cret");
    let unknown = format!("{good} sslrootcert={}", other.display());
    story.refused(&unknown, 1, &["not from an authority in", &other.display().to_string(), "sslrootcert"]);
    let named = format!("{good} host=db2.test");
    story.refused(&named, 1, &["its certificate is for db.test, not for db2.test", "host=NAME hostaddr=ADDRESS"]);
    let missing = format!("{good} sslrootcert=/nonexistent");
    story.refused(&missing, 2, &["cannot read the root certificate file /nonexistent"]);
    let nowhere = format!("host=127.0.0.1 port={} user=keeper sslmode=verify-ca", story.server.port());
    story.refused(&nowhere, 2, &["sslmode=verify-ca needs root certificates", "sslrootcert=system"]);
    story.refused(&format!("{good} sslpassword=x"), 2, &["sslpassword is not supported", "unencrypted"]);
    // The machine's own authorities: here, as the variable of OpenSSL says, the one that the server has.
    let system = format!("{good} sslrootcert=system");
    let refused = story.backup(&system).env("SSL_CERT_FILE", &other).fail_with(1).stderr;
    assert!(refused.contains("not from an authority in the machine's own list"), "{refused}");
    story.backup(&system).env("SSL_CERT_FILE", story.dir.join("root.crt")).succeed();
    let variables = format!("host=db.test user=keeper port={}", story.server.port());
    let by_variables = story.backup(&variables).env("PGHOSTADDR", "127.0.0.1").env("PGPASSWORD", "s3cret");
    let by_variables = by_variables.env("PGSSLMODE", "verify-full").env("PGCHANNELBINDING", "require");
    by_variables.env("PGSSLROOTCERT", story.dir.join("root.crt")).succeed();

    let expired = story.dir.join("expired");
    story.server.alter_system("ssl_key_file", &expired.with_extension("key").display().to_string());
    let certificate = expired.with_extension("crt").display().to_string();
    story.server.alter_system("ssl_cert_file", &certificate);
    story.server.wait_for("SHOW ssl_cert_file", &certificate);
    story.refused(&good, 1, &["its certificate has expired at 2001-02-03T00:00:00Z", "ssl_cert_file"]);

    story.server.alter_system("ssl", "off");
    story.server.wait_for("SHOW ssl", "off");
    story.refused(&good, 1, &["does not offer TLS, which sslmode=verify-full demands", "ALTER SYSTEM SET ssl = 'on';"]);
}
