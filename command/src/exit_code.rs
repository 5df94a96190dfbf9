//! The exit codes that users, timers and PostgreSQL act on.
//!
//! PostgreSQL reads the code of a `restore_command` as a statement: 1 to 125 says "this file does not exist", after
//! which recovery ends and the server is promoted; above 125 says "stop". So the same failure needs another number
//! there, and that translation is made in one place, [`ExitCode::number`], for panics and for wrong usage too.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Done, and what was to be durable is durable.
    Done,
    /// Failed for a reason that has no code of its own.
    Failed,
    /// `wal`: proven absent from the archive. Nothing else may use this.
    NotInArchive,
    /// Wrong usage or configuration.
    Usage,
    /// The target cannot be reached, or the backup does not exist.
    Unreachable,
    /// Stored data is damaged.
    Damaged,
    /// The backup is stored, but the source has damaged pages.
    SourceDamaged,
    /// A bug in this program.
    Panicked,
}

/// Who reads the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitPolicy {
    /// A person, a timer, or PostgreSQL's archiver, which only looks for zero and tolerates 1 to 125.
    Ordinary,
    /// PostgreSQL's recovery.
    RestoreCommand,
}

/// What a `restore_command` answers when it cannot say whether the file exists. Above 125, so that recovery stops;
/// and none of the numbers that have a meaning already: 126 and 127 are the shell's, 128 + n is a signal (143, SIGTERM,
/// would make PostgreSQL shut down quietly), 255 is what ssh uses.
const FETCH_FAILED: u8 = 200;

impl ExitCode {
    /// The number for the operating system.
    pub fn number(self, policy: ExitPolicy) -> u8 {
        match (policy, self) {
            (_, Self::Done) => 0,
            (_, Self::NotInArchive) => 1,
            (ExitPolicy::RestoreCommand, _) => FETCH_FAILED,
            (ExitPolicy::Ordinary, Self::Failed) => 1,
            (ExitPolicy::Ordinary, Self::Usage) => 2,
            (ExitPolicy::Ordinary, Self::Unreachable) => 3,
            (ExitPolicy::Ordinary, Self::Damaged) => 4,
            (ExitPolicy::Ordinary, Self::SourceDamaged) => 5,
            (ExitPolicy::Ordinary, Self::Panicked) => 101,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ExitCode; 8] = [
        ExitCode::Done,
        ExitCode::Failed,
        ExitCode::NotInArchive,
        ExitCode::Usage,
        ExitCode::Unreachable,
        ExitCode::Damaged,
        ExitCode::SourceDamaged,
        ExitCode::Panicked,
    ];

    #[test]
    fn ordinary_codes_are_the_documented_ones_and_never_alarm_the_archiver() {
        let numbers = ALL.map(|code| code.number(ExitPolicy::Ordinary));
        assert_eq!(numbers, [0, 1, 1, 2, 3, 4, 5, 101]);
        // From 126 on the archiver process dies, and pg_stat_archiver does not count the failure.
        assert!(numbers.iter().all(|number| *number <= 125));
    }

    #[test]
    fn only_a_proven_absence_looks_like_the_end_of_wal() {
        for code in ALL {
            let number = code.number(ExitPolicy::RestoreCommand);
            match code {
                ExitCode::Done => assert_eq!(number, 0),
                ExitCode::NotInArchive => assert_eq!(number, 1),
                _ => assert!(number > 127 && number != 143 && number != 255, "{code:?} gives {number}"),
            }
        }
    }
}
