use super::*;
use std::os::unix::fs::PermissionsExt;

fn tcp() -> (Responder, SocketAddr) {
    let responder = Responder::launch(&"127.0.0.1:0".parse().unwrap(), || {
        Some("x 1\n# EOF\n".to_string())
    })
    .unwrap();
    let Address::Tcp(address) = responder.address else {
        panic!("{responder:?}")
    };
    (responder, address)
}

fn ask(mut stream: impl Stream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn only_get_metrics_is_answered() {
    let (_responder, address) = tcp();
    let ask = |request: &str| ask(TcpStream::connect(address).unwrap(), request);
    let good = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
    assert!(good.contains(
        "\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
    ));
    assert!(
        good.ends_with("\r\nContent-Length: 10\r\nConnection: close\r\n\r\nx 1\n# EOF\n"),
        "{good}"
    );
    let head = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(
        head.contains("Content-Length: 10") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("GET /metrics HTTP/2\r\n\r\n", "505"),
        ("hello\r\n\r\n", "400"),
    ] {
        let answer = ask(request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
    }
}

#[test]
fn endless_and_silent_clients_are_dropped() {
    let (_responder, address) = tcp();
    let mut endless = TcpStream::connect(address).unwrap();
    let _ = endless.write_all(&[b'x'; MAX_REQUEST + 1]);
    let mut answer = [0; 12];
    endless.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    let mut silent = TcpStream::connect(address).unwrap();
    let begin = Instant::now();
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert!(begin.elapsed() < 3 * PATIENCE);
}

#[test]
fn sockets_are_for_owner_and_group_and_go_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    // left over by somebody who is gone
    drop(UnixListener::bind(&path).unwrap());
    let address = Address::Unix(path.clone());
    let responder = Responder::launch(&address, || None).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o660
    );
    let stream = UnixStream::connect(&path).unwrap();
    assert!(ask(stream, "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
    // not taken from somebody who is there
    assert!(Responder::launch(&address, || None).is_err());
    drop(responder);
    assert!(!path.exists());
    // nor from a file
    fs::write(&path, "").unwrap();
    assert!(Responder::launch(&address, || None).is_err());
}

#[test]
fn addresses() {
    let local = |word: &str| word.parse::<Address>().map(|address| address.is_local());
    assert_eq!(local("127.0.0.1:9464"), Ok(true));
    assert_eq!(local("localhost:9464"), Ok(true));
    assert_eq!(local("[::1]:9464"), Ok(true));
    assert_eq!(local("/run/metrics"), Ok(true));
    assert_eq!(local("unix:/run/metrics"), Ok(true));
    assert_eq!(local("0.0.0.0:9464"), Ok(false));
    assert_eq!(local("192.0.2.1:9464"), Ok(false));
    for wrong in ["9464", "example.org:9464", "run/metrics", ""] {
        assert!(local(wrong).is_err(), "{wrong}");
    }
}
