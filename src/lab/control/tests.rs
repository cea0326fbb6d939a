use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::lab::Session;

/// A server of its own in a directory of its own.
struct Setup {
    _serving: Serving,
    running: RunningLab,
    _session: Session,
}

fn setup() -> Setup {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("control-{}-{number}", std::process::id());
    let session = Session::start(&name).unwrap();
    let serving = Server::bind(&session)
        .unwrap()
        .serve(|request| match request.op.as_str() {
            "echo" => json!({ "arguments": request.arguments }).into(),
            "fd" => Response {
                body: json!({ "filler": "x".repeat(300_000) }),
                fds: vec![std::fs::File::open("/proc/self/stat").unwrap().into()],
            },
            _ => Response::error("no such operation"),
        })
        .unwrap();
    Setup {
        _serving: serving,
        running: session.as_running(),
        _session: session,
    }
}

#[test]
fn requests_are_answered_one_after_another() {
    let setup = setup();
    let mut client = Client::connect(&setup.running).unwrap();
    for number in 0..3 {
        let mut request = Request::new("echo");
        request.arguments.insert("number".into(), json!(number));
        let (body, fds) = client.call(&request).unwrap();
        assert_eq!(body, json!({ "arguments": { "number": number } }));
        assert!(fds.is_empty());
    }
}

#[test]
fn descriptors_arrive_beside_a_long_answer() {
    let setup = setup();
    let mut client = Client::connect(&setup.running).unwrap();
    let (body, mut fds) = client.call(&Request::new("fd")).unwrap();
    assert_eq!(body["filler"].as_str().unwrap().len(), 300_000);
    let mut text = String::new();
    std::fs::File::from(fds.pop().unwrap())
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.starts_with(&std::process::id().to_string()));
}

#[test]
fn refusals_say_why() {
    let setup = setup();
    let mut client = Client::connect(&setup.running).unwrap();
    let error = client.call(&Request::new("nonsense")).unwrap_err();
    assert_eq!(error.to_string(), "no such operation");
}

#[test]
fn garbage_gets_an_error_and_the_next_request_an_answer() {
    let setup = setup();
    let stream = UnixStream::connect(setup.running.control_path()).unwrap();
    let mut lines = BufReader::new(&stream).lines();
    for garbage in [&b"\xff\xfe\n"[..], b"[1]\n", b"\n", b"{\"op\":1}\n"] {
        (&stream).write_all(garbage).unwrap();
        let line = lines.next().unwrap().unwrap();
        assert!(line.starts_with("{\"error\":\"not a request"), "{line}");
    }
    (&stream).write_all(b"{\"op\":\"echo\"}\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"arguments\":{}}");
}

#[test]
fn an_endless_request_is_cut_off() {
    let setup = setup();
    let stream = UnixStream::connect(setup.running.control_path()).unwrap();
    let _ = (&stream).write_all(&vec![b'x'; 1 << 20]);
    let mut answer = String::new();
    let _ = (&stream).read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.contains("at most 65536 bytes"),
        "{answer}"
    );
}

#[test]
fn silent_clients_do_not_keep_others_waiting() {
    let setup = setup();
    let silent: Vec<UnixStream> = (0..10)
        .map(|_| UnixStream::connect(setup.running.control_path()).unwrap())
        .collect();
    let begun = std::time::Instant::now();
    let mut client = Client::connect(&setup.running).unwrap();
    client.call(&Request::new("echo")).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(silent);
}

#[test]
fn a_new_client_replaces_the_oldest_idle_one() {
    let setup = setup();
    let many: Vec<UnixStream> = (0..1000)
        .map(|_| UnixStream::connect(setup.running.control_path()).unwrap())
        .collect();
    let mut client = Client::connect(&setup.running).unwrap();
    client.call(&Request::new("echo")).unwrap();
    let read = |mut stream: &UnixStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read(&mut [0; 99])
    };
    assert_eq!(read(&many[0]).unwrap(), 0, "the oldest is hung up on");
    let mut last = many.last().unwrap();
    last.write_all(b"{\"op\":\"echo\"}\n").unwrap();
    assert_eq!(read(last).unwrap(), b"{\"arguments\":{}}\n".len());
}

#[test]
fn one_request_more_than_can_be_answered_at_a_time_is_refused_with_the_reason() {
    let setup = setup();
    let busy: Vec<UnixStream> = (0..32)
        .map(|_| {
            let stream = UnixStream::connect(setup.running.control_path()).unwrap();
            // Nobody reads the long answer, so it stays in progress.
            (&stream).write_all(b"{\"op\":\"fd\"}\n").unwrap();
            (&stream).read_exact(&mut [0; 9]).unwrap();
            stream
        })
        .collect();
    let mut client = Client::connect(&setup.running).unwrap();
    let error = client.call(&Request::new("echo")).unwrap_err();
    assert!(error.to_string().contains("too many requests"), "{error}");
    drop(busy);
}

#[test]
fn a_deep_state_directory_is_reachable() {
    let deep = tempfile::tempdir().unwrap();
    let dir = deep.path().join("d".repeat(120));
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("control.sock");
    let listener =
        with_short_path(&path, |path| std::os::unix::net::UnixListener::bind(path)).unwrap();
    with_short_path(&path, |path| UnixStream::connect(path)).unwrap();
    drop(listener);
}
