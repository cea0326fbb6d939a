//! A real PostgreSQL inside an entity, and `psql` in others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{Lab, Process, need, succeed};

/// A database server; it ends when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    _dir: tempfile::TempDir,
}

/// A `psql` that was started and can be told more.
#[derive(Debug)]
pub struct Session {
    process: Process,
    stdin: std::process::ChildStdin,
}

impl Postgres {
    /// Makes a database and serves it on port 5432 of `entity`'s address.
    pub fn start(lab: &Lab, entity: &str, address: &str) -> Self {
        need("psql", "postgresql-client");
        need("unshare", "util-linux");
        let bin = programs();
        let dir = tempfile::Builder::new()
            .prefix("sgwall-postgres-")
            .tempdir()
            .unwrap();
        let data = dir.path().join("data");
        succeed(
            as_postgres(&bin.join("initdb"))
                .args(["--no-sync", "--auth=trust", "-U", "postgres", "-D"])
                .arg(&data)
                .current_dir(dir.path()),
        );
        let access = data.join("pg_hba.conf");
        let text = fs::read_to_string(&access).unwrap();
        fs::write(&access, format!("{text}\nhost all all 0.0.0.0/0 trust\n")).unwrap();

        let server = as_postgres(&bin.join("postgres"));
        let words: Vec<_> = std::iter::once(server.get_program())
            .chain(server.get_args())
            .collect();
        let process = Process::spawn(
            lab.exec(entity, &words)
                .arg("-D")
                .arg(&data)
                .arg("-k")
                .arg(dir.path())
                .args(["-h", address, "-c", "fsync=off"])
                .current_dir(dir.path()),
        );
        process.stderr.wait("that it is ready", |line| {
            line.contains("ready to accept connections")
        });
        Self { process, _dir: dir }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, whoever is connected; the directory goes with it.
        self.process.signal(nix::sys::signal::Signal::SIGQUIT);
        if !std::thread::panicking() {
            self.process.wait();
        }
    }
}

/// `psql` from an entity to a host, with one query.
pub fn query(lab: &Lab, from: &str, host: &str, sql: &str) -> Output {
    psql(lab, from, host).args(["-c", sql]).output().unwrap()
}

/// Whether a connection was neither made nor refused.
pub fn timed_out(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    !output.status.success() && text.contains("timeout expired")
}

impl Session {
    /// Opens a session and leaves it open.
    pub fn open(lab: &Lab, from: &str, host: &str) -> Self {
        let mut process = Process::spawn(psql(lab, from, host).stdin(Stdio::piped()));
        let stdin = process.stdin();
        Self { process, stdin }
    }

    /// Sends a query and waits until the line `answer` comes.
    pub fn ask(&mut self, sql: &str, answer: &str) {
        use std::io::Write;
        writeln!(self.stdin, "{sql}").unwrap();
        self.process.stdout.wait(answer, |line| line == answer);
    }

    /// Ends the session; psql must be content with how it went.
    pub fn close(self) {
        let Self { mut process, stdin } = self;
        drop(stdin);
        let status = process.wait();
        assert!(
            status.success(),
            "psql: {status}: {}",
            process.stderr.text()
        );
    }
}

fn psql(lab: &Lab, from: &str, host: &str) -> Command {
    let mut command = lab.exec(from, &["psql"]);
    command
        .args(["-X", "-A", "-t", "-q", "-U", "postgres", "-h", host])
        .env("PGCONNECT_TIMEOUT", "2")
        .env("PGSSLMODE", "disable")
        .env("LC_ALL", "C");
    command
}

fn as_postgres(program: &Path) -> Command {
    // The server refuses to run as root, and where the tests are root of a user
    // namespace there is nobody else. In another one root is `postgres`.
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-user=postgres", "--map-group=postgres"])
        .arg(program)
        .env("LC_ALL", "C");
    command
}

/// Where Debian keeps the server's programs.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop().expect(
        "this test needs a PostgreSQL server under /usr/lib/postgresql, which is not installed: apt-get install postgresql",
    )
}
