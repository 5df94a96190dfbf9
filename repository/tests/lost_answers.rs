//! Connections that break at a bad moment, in front of a real S3 server (s3s-fs): answers that are lost, servers in
//! trouble, content that is cut off, networks that are dead.

use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::{Action, Fault, FaultProxy, S3Server, Trigger};
use pgark_repository::{ClusterRepository, Creation, ErrorKind, RepositoryError, RepositoryOptions};

use crate::contract::{everything_fails, is_configuration};
use crate::place::{bytes, key, noise, open, read_through_reader, through};

/// A server, a proxy before it, and the repository behind both; `direct` goes around the proxy.
struct Broken {
    proxy: FaultProxy,
    repository: ClusterRepository,
    direct: ClusterRepository,
    /// Opened again, they make new connections.
    options: RepositoryOptions,
    /// Ends last.
    _server: S3Server,
}

fn broken() -> Broken {
    let server = S3Server::start();
    let proxy = FaultProxy::to_port(server.port());
    let options = through(&proxy, &server);
    let direct = RepositoryOptions { endpoint: Some(server.endpoint()), ..options.clone() };
    Broken { repository: open(&options), direct: open(&direct), options, proxy, _server: server }
}

/// A request with this method for an object.
fn request(method: &str, repository: &ClusterRepository, number: u32) -> Trigger {
    Trigger::RequestWith(format!("{method} /backups/pgark/{}", key(repository, number)))
}

fn lose(when: Trigger) -> Fault {
    Fault::once(when, Action::LoseAnswer)
}

const IN_TROUBLE: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

#[tokio::test]
async fn b10_a_create_whose_answer_is_lost_is_a_success() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    proxy.add(lose(request("PUT", &repository, 1)));
    let created = repository.store().create(&key(&repository, 1), bytes("mine")).await.unwrap();
    assert!(matches!(created, Creation::Created | Creation::Identical), "{created:?}");
    assert_eq!(proxy.struck(), 1);
    assert_eq!(direct.store().read(&key(&repository, 1), 10).await.unwrap(), "mine");

    // The answer of the comparison is lost too.
    proxy.add(lose(request("PUT", &repository, 2)));
    proxy.add(lose(request("GET", &repository, 2)));
    let created = repository.store().create(&key(&repository, 2), bytes("mine")).await.unwrap();
    assert_eq!(created, Creation::Identical);
    assert_eq!(proxy.struck(), 3);
}

#[tokio::test]
async fn b10_a_lost_answer_does_not_hide_that_another_writer_was_first() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    direct.store().create(&key(&repository, 1), bytes("theirs")).await.unwrap();
    proxy.add(lose(request("PUT", &repository, 1)));
    assert_eq!(repository.store().create(&key(&repository, 1), bytes("mine!!")).await.unwrap(), Creation::Different);
    assert_eq!(proxy.struck(), 1);
    assert_eq!(direct.store().read(&key(&repository, 1), 10).await.unwrap(), "theirs");
}

#[tokio::test]
async fn b08_a_server_in_trouble_is_asked_again() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    for status in ["503 Slow Down", "500 Internal Server Error"] {
        proxy.add(Fault::once(request("PUT", &repository, 1), Fault::http_answer(status, IN_TROUBLE)));
    }
    proxy.add(Fault::once(request("PUT", &repository, 1), Action::Reset));
    assert_eq!(repository.store().create(&key(&repository, 1), bytes("x")).await.unwrap(), Creation::Created);
    for method in ["HEAD", "GET"] {
        proxy.add(Fault::once(request(method, &repository, 1), Fault::http_answer("503 Slow Down", IN_TROUBLE)));
    }
    assert_eq!(repository.store().size(&key(&repository, 1)).await.unwrap(), Some(1));
    proxy.clear();
    // In the middle of the body: the server has not seen the whole of it.
    let content = Bytes::from(noise(3, 3 << 20));
    let before = proxy.struck();
    for _ in 0..2 {
        proxy.add(Fault::once(Trigger::BytesToServer(1 << 20), Action::Reset));
    }
    assert_eq!(repository.store().create(&key(&repository, 2), content.clone()).await.unwrap(), Creation::Created);
    assert_eq!(proxy.struck(), before + 2);
    assert!(direct.store().read(&key(&repository, 2), 3 << 20).await.unwrap() == content);
}

/// S3 says 409 while another conditional request is under way, and Azure while a container is being deleted: nothing
/// has the name yet.
#[tokio::test]
async fn b10_a_name_that_is_taken_by_nothing_is_no_conflict() {
    let Broken { proxy, repository, _server, .. } = broken();
    let answer = Fault::http_answer("409 Conflict", "<Error><Code>ConditionalRequestConflict</Code></Error>");
    proxy.add(Fault::once(request("PUT", &repository, 1), answer.clone()));
    assert_eq!(repository.store().create(&key(&repository, 1), bytes("x")).await.unwrap(), Creation::Created);
    assert_eq!(proxy.struck(), 1);

    proxy.add(Fault::always(request("PUT", &repository, 2), answer));
    let error = repository.store().create(&key(&repository, 2), bytes("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

async fn stream(repository: &ClusterRepository, number: u32, content: &[u8]) -> Result<(), RepositoryError> {
    let mut writer = repository.store().begin(&key(repository, number)).await?;
    for chunk in content.chunks(4 << 20) {
        writer.write(Bytes::copy_from_slice(chunk)).await?;
    }
    writer.finish().await.map(drop)
}

#[tokio::test]
async fn b10_c12_a_streamed_object_survives_lost_answers() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    let content = noise(4, 20 << 20);
    proxy.add(lose(request("POST", &repository, 1)));
    for _ in 0..2 {
        proxy.add(lose(request("PUT", &repository, 1)));
    }
    stream(&repository, 1, &content).await.unwrap();
    assert_eq!(proxy.struck(), 3);
    assert!(read_through_reader(direct.store(), &key(&repository, 1)).await.unwrap() == content);

    // The request that joins the pieces, carried out and not answered.
    proxy.add(lose(Trigger::RequestWith("<CompleteMultipartUpload".to_owned())));
    stream(&repository, 2, &content).await.unwrap();
    assert_eq!(proxy.struck(), 4);
    assert!(read_through_reader(direct.store(), &key(&repository, 2)).await.unwrap() == content);
}

/// "200 OK" comes before the work is done, so it says nothing.
#[tokio::test]
async fn b09_an_error_inside_a_success_is_an_error() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    let content = noise(5, 9 << 20);
    for (number, code, success) in [(1, "InternalError", true), (2, "AccessDenied", false)] {
        let answer = Fault::http_answer("200 OK", &format!("<Error><Code>{code}</Code></Error>"));
        let when = Trigger::RequestWith("<CompleteMultipartUpload".to_owned());
        proxy.add(Fault::once(when, answer));
        let streamed = stream(&repository, number, &content).await;
        assert_eq!(streamed.is_ok(), success, "{code}: {streamed:?}");
        let there = direct.store().size(&key(&repository, number)).await.unwrap();
        assert_eq!(there, success.then_some(content.len() as u64), "{code}");
    }
    assert_eq!(proxy.struck(), 2);
}

#[tokio::test]
async fn c03_content_that_is_cut_off_is_fetched_to_its_end_or_not_believed() {
    let Broken { proxy, repository, direct, options, _server } = broken();
    let content = Bytes::from(noise(6, 9 << 20));
    direct.store().create(&key(&repository, 1), content.clone()).await.unwrap();
    for action in [Action::Close, Action::Reset] {
        proxy.add(Fault::once(Trigger::BytesToClient(1 << 20), action));
    }
    assert!(repository.store().read(&key(&repository, 1), 9 << 20).await.unwrap() == content);
    for _ in 0..3 {
        proxy.add(Fault::once(Trigger::BytesToClient(2 << 20), Action::Reset));
    }
    assert!(read_through_reader(open(&options).store(), &key(&repository, 1)).await.unwrap() == content);
    assert_eq!(proxy.struck(), 5);

    // An object that ends early with every mark of success.
    let body = "0123456789";
    let head =
        "HTTP/1.1 200 OK\r\nLast-Modified: Fri, 20 Nov 2026 02:00:03 GMT\r\nETag: \"1\"\r\nContent-Length: 20\r\n";
    let short = Action::Answer(format!("{head}Connection: close\r\n\r\n{body}").into_bytes());
    proxy.add(Fault::always(request("GET", &repository, 1), short));
    let read = repository.store().read(&key(&repository, 1), 100).await;
    assert!(read.is_err(), "{read:?}");
}

/// Also where it stands in for a store: only the store itself can say that something is missing.
#[tokio::test]
async fn c05_c19_a_page_of_a_proxy_is_not_the_word_of_the_store() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    direct.store().create(&key(&repository, 1), bytes("there")).await.unwrap();
    let wal = "00000002.history".parse().unwrap();
    for status in
        ["404 Not Found", "200 OK", "301 Moved Permanently", "403 Forbidden", "407 Proxy Authentication Required"]
    {
        let page = "<html><head><title>Welcome</title></head><body>Please log in.</body></html>";
        proxy.clear();
        proxy.add(Fault::always(Trigger::RequestWith("HTTP/1.1".to_owned()), Fault::http_answer(status, page)));
        let store = repository.store();
        let (key, root) = (key(&repository, 1), repository.keys().root());
        let errors = [
            ("size", store.size(&key).await.map(drop)),
            ("read", store.read(&key, 10).await.map(drop)),
            ("list", store.list(&root).await.map(drop)),
            ("list_folder", store.list_folder(&root).await.map(drop)),
            ("backups", repository.backups().await.map(drop)),
            ("fetch", repository.fetch_wal_file(&wal, Vec::new()).await.map(drop)),
        ];
        for (operation, error) in errors {
            let error = error.expect_err(operation);
            assert_ne!(error.kind(), ErrorKind::NotFound, "{status} {operation}: {error:?}");
            // Nothing tells a page from an object's content but the content itself.
            let is_content = status == "200 OK" && operation == "read";
            assert!(is_content || error.kind() != ErrorKind::Damaged, "{status} {operation}: {error:?}");
        }
    }
    assert!(proxy.struck() > 20);
}

/// What real S3 says; s3s-fs makes a bucket by itself.
#[tokio::test]
async fn c05_a_missing_bucket_is_a_mistake_and_not_a_missing_object() {
    let Broken { proxy, repository, _server, .. } = broken();
    let body = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
    proxy.add(Fault::always(Trigger::RequestWith("HTTP/1.1".to_owned()), Fault::http_answer("404 Not Found", body)));
    everything_fails(&repository, is_configuration).await;
}

/// A page of a listing that does not come is not the end of the listing.
#[tokio::test]
async fn c04_a_listing_that_breaks_off_is_an_error() {
    let Broken { proxy, repository, direct, _server, .. } = broken();
    for number in 1..=3 {
        direct.store().create(&key(&repository, number), bytes("x")).await.unwrap();
    }
    // A first page that promises a second one.
    let entry = |number| {
        let key = key(&repository, number);
        let times = "<LastModified>2026-11-20T02:00:03.000Z</LastModified><ETag>\"1\"</ETag>";
        format!("<Contents><Key>pgark/{key}</Key>{times}<Size>1</Size></Contents>")
    };
    let page = format!(
        "<ListBucketResult>{}<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken></ListBucketResult>",
        entry(1)
    );
    let refused = Fault::http_answer("400 Bad Request", "<Error><Code>InvalidArgument</Code></Error>");
    proxy.add(Fault::once(Trigger::RequestWith("continuation-token=next".to_owned()), refused));
    proxy.add(Fault::once(Trigger::RequestWith("list-type=2".to_owned()), Fault::http_answer("200 OK", &page)));
    let listed = repository.store().list(&repository.keys().root()).await;
    assert!(matches!(listed, Err(RepositoryError::Unavailable { .. })), "{listed:?}");
    assert_eq!(proxy.struck(), 2);
}

/// Longer than a user's or PostgreSQL's patience a dead network must not take.
const BOUND: Duration = Duration::from_secs(58);

async fn timed(name: &str, operation: impl Future<Output = Result<(), RepositoryError>>) {
    let started = Instant::now();
    let error = operation.await.expect_err(name);
    assert!(matches!(error, RepositoryError::Unavailable { .. }), "{name}: {error:?}");
    assert!(started.elapsed() < BOUND, "{name} took {:?}", started.elapsed());
}

async fn all_fail_in_time(repository: &ClusterRepository) {
    let store = repository.store();
    let (one, two, root) = (key(repository, 1), key(repository, 2), repository.keys().root());
    tokio::join!(
        timed("create", async { store.create(&one, bytes("x")).await.map(drop) }),
        timed("size", async { store.size(&one).await.map(drop) }),
        timed("read", async { store.read(&one, 10).await.map(drop) }),
        timed("read_range", async { store.read_range(&one, 0, 5).await.map(drop) }),
        timed("list", async { store.list(&root).await.map(drop) }),
        timed("list_folder", async { store.list_folder(&root).await.map(drop) }),
        timed("delete", async { store.delete(&two).await }),
        timed("begin", async { store.begin(&two).await.map(drop) }),
        timed("backups", async { repository.backups().await.map(drop) }),
    );
}

#[tokio::test]
async fn c20_b24_a_dead_network_is_an_error_in_less_than_a_minute() {
    let server = S3Server::start();
    let (silent, deaf, once) =
        (FaultProxy::to_port(server.port()), FaultProxy::to_port(server.port()), FaultProxy::to_port(server.port()));
    // Connected, and nothing passes; the request passes, and no answer comes.
    silent.add(Fault::always(Trigger::Connect, Action::Stall));
    deaf.add(Fault::always(Trigger::BytesToClient(0), Action::Stall));
    // Nobody listens, and a name that nobody has.
    let refused = RepositoryOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..through(&silent, &server) };
    let nameless =
        RepositoryOptions { endpoint: Some("http://store.invalid:9000".to_owned()), ..through(&silent, &server) };
    // A connection that died quietly: the second one works.
    once.add(Fault::once(Trigger::Connect, Action::Stall));
    let recovering = open(&through(&once, &server));
    let recovers = async {
        assert_eq!(recovering.store().size(&key(&recovering, 7)).await.unwrap(), None);
        assert_eq!(once.struck(), 1);
    };
    let (silent, deaf) = (open(&through(&silent, &server)), open(&through(&deaf, &server)));
    let (refused, nameless) = (open(&refused), open(&nameless));
    tokio::join!(
        all_fail_in_time(&silent),
        all_fail_in_time(&deaf),
        all_fail_in_time(&refused),
        all_fail_in_time(&nameless),
        recovers
    );
}

/// An outage in the middle of a stream that is being read: waited out.
#[tokio::test]
async fn c20_a_short_outage_does_not_end_a_long_read() {
    let mut server = S3Server::start();
    let repository = {
        let proxy = FaultProxy::to_port(server.port());
        open(&RepositoryOptions { endpoint: Some(server.endpoint()), ..through(&proxy, &server) })
    };
    let content = noise(8, 24 << 20);
    stream(&repository, 1, &content).await.unwrap();
    let mut reader = repository.store().open_reader(&key(&repository, 1)).await.unwrap();
    let (mut reader, begun) = tokio::task::spawn_blocking(move || {
        let mut begun = vec![0; 1 << 20];
        reader.read_exact(&mut begun).unwrap();
        (reader, begun)
    })
    .await
    .unwrap();
    server.stop();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest)
    });
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.start_again();
    let rest = rest.await.unwrap().unwrap();
    assert!([begun, rest].concat() == content);
}
