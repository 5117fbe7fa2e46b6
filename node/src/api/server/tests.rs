//! The server as its callers see it, on a real socket, over a driver that is
//! played: it answers from a peer that has made two deals.

use std::net::{Ipv4Addr, SocketAddr};

use serde::de::DeserializeOwned;
use suanli_protocol::{
    bundle::Bundle,
    peer::{Peer, Unanswered, Unreferred},
    rank::Plan,
    record::JobOrder,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::*;
use crate::{
    api::types::{
        ApiError, BlobInfo, ChannelInfo, JobEventInfo, JobInfo, JobLine, OfferInfo, PlanInfo,
        ReceiptInfo, Status, Submitted,
    },
    handle::{self, Ask, AskQueue, Look, NodeFacts, NotPaused, Snapshot, Watch},
    records::{
        dealt::{self, Dealt, OUTPUT, submission},
        tests::{QUOTA_BYTES, store_of},
    },
    store::Store,
    transport::{Transport, TransportConfig, TransportLimits},
    wall::{wall, wall_ms},
};

const TOKEN: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";

#[tokio::test]
async fn abuse_65_without_the_token_nothing_is_answered() {
    let server = Server::start().await;
    for path in ["/v1/status", "/v1/jobs", "/v1/nothing", "/"] {
        for shown in [
            String::new(),
            "Authorization: Bearer\r\n".to_owned(),
            "Authorization: Bearer 0\r\n".to_owned(),
            format!("Authorization: {TOKEN}\r\n"),
            format!("Authorization: Basic {TOKEN}\r\n"),
            format!("Authorization: Bearer {TOKEN}0\r\n"),
            format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n"),
        ] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{shown}", server.address);
            let answer = server.raw(&head, b"").await;
            assert_eq!(answer.status, 401, "{path} {shown}");
            let error: ApiError = answer.json();
            assert_eq!(error.exit_code, 7);
        }
    }
    assert_eq!(server.get("/v1/status").await.status, 200);
}

#[tokio::test]
async fn abuse_66_a_name_that_was_pointed_here_is_refused() {
    let server = Server::start().await;
    let port = server.address.port();
    let hosts = [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        format!("127.0.0.1:{}", port ^ 1),
        format!("127.0.0.1:{port}\r\nHost: evil.example:{port}"),
    ];
    for host in hosts {
        let head =
            format!("GET /v1/status HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n");
        assert_eq!(server.raw(&head, b"").await.status, 403, "{host}");
    }
    let head = format!(
        "GET http://evil.example:{port}/v1/status HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    );
    assert_eq!(server.raw(&head, b"").await.status, 403);
    let head = format!(
        "GET /v1/status HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    );
    assert_eq!(server.raw(&head, b"").await.status, 200);
}

#[tokio::test]
async fn abuse_67_other_sites_can_neither_post_nor_listen() {
    let server = Server::start().await;
    let job = server.dealt_job();
    for foreign in [
        "Origin: http://evil.example\r\n".to_owned(),
        "Origin: null\r\n".to_owned(),
        format!("Origin: http://127.0.0.1:{}\r\n", server.address.port() ^ 1),
        format!("Origin: https://{}\r\n", server.address),
        "Sec-Fetch-Site: cross-site\r\n".to_owned(),
    ] {
        let posted = server.with("POST", "/v1/shutdown", &foreign, b"").await;
        assert_eq!(posted.status, 403, "{foreign}");
        let events = format!("/v1/jobs/{job}/events");
        let listened = server.with("GET", &events, &foreign, b"").await;
        assert_eq!(listened.status, 403, "{foreign}");
        assert!(!listened.head.contains("access-control-allow-origin"));
    }
    let own = format!("Origin: http://{}\r\n", server.address);
    let answer = server.with("GET", "/v1/status", &own, b"").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("x-content-type-options: nosniff"));
    // A form of another site could send this kind of body without asking.
    let form = "Content-Type: text/plain\r\n";
    let body = serde_json::to_vec(&submission(9)).unwrap();
    assert_eq!(
        server.with("POST", "/v1/jobs", form, &body).await.status,
        415
    );
}

#[tokio::test]
async fn a_pause_is_ordered_in_json_and_refused_in_words() {
    let server = Server::start().await;
    let paused = server.post_json("/v1/pause", b"{\"for_ms\":1}").await;
    assert_eq!(paused.status, 200);
    let _: Status = paused.json();
    for (path, body) in [("/v1/pause", &b"{}"[..]), ("/v1/resume", b"")] {
        let refused = server.post_json(path, body).await;
        assert_eq!(refused.status, 409, "{path}");
        let error: ApiError = refused.json();
        assert!(error.error.contains("sells nothing"), "{}", error.error);
    }
    let misspelt = server.post_json("/v1/pause", b"{\"for\":1}").await;
    assert_eq!(misspelt.status, 422);
}

#[tokio::test]
async fn abuse_71_no_error_shows_the_token() {
    let server = Server::start().await;
    let wrong = format!("Authorization: Bearer {TOKEN}x\r\n");
    let head = format!(
        "GET /v1/{TOKEN} HTTP/1.1\r\nHost: {}\r\n{wrong}",
        server.address
    );
    let answers = [
        server.raw(&head, b"").await,
        server.get("/v1/nothing").await,
        server.get("/v1/jobs/ffff").await,
        server.get("/v1/jobs?limit=x").await,
        server.post_json("/v1/jobs", b"{").await,
        server.with("PUT", "/v1/status", "", b"").await,
    ];
    for answer in answers {
        assert!(answer.status >= 400);
        assert!(!answer.head.contains(TOKEN), "{}", answer.head);
        let error: ApiError = answer.json();
        assert!(!error.error.contains(TOKEN), "{}", error.error);
    }
}

#[tokio::test]
async fn abuse_72_a_flood_of_uploads_is_refused_and_control_stays_alive() {
    let server = Server::start().await;
    let used = server.store.blobs().used_bytes();
    let mut stalled = Vec::new();
    let refused = loop {
        let answer = server.post("/v1/blobs", b"small").await;
        if answer.status == 429 {
            break answer;
        }
        // Announces more than it sends, and so keeps its place.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = server.head("POST", "/v1/blobs", "Content-Length: 1000\r\n");
        let begun = format!("{head}\r\npartial");
        stream.write_all(begun.as_bytes()).await.unwrap();
        stalled.push(stream);
    };
    assert!(refused.head.contains("retry-after"));
    assert!(refused.json::<ApiError>().error.contains("try again"));
    assert_eq!(server.get("/v1/status").await.status, 200);
    assert_eq!(server.get("/v1/jobs").await.status, 200);

    // What broke off leaves neither a file nor a reservation.
    drop(stalled);
    while server.post("/v1/blobs", b"small").await.status != 200 {}
    while server.store.blobs().used_bytes() != used + 5 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn abuse_72_a_flood_of_questions_is_refused_and_a_stop_still_works() {
    let server = Server::start_through(Gates::with_rate(5)).await;
    let refused = loop {
        let answer = server.get("/v1/status").await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status, 429);
    assert!(refused.head.contains("retry-after: 1"));
    assert_eq!(refused.json::<ApiError>().exit_code, 3);
    // What ends something has a rate of its own, and so has everything else.
    let cancel = format!("/v1/jobs/{}/cancel", server.dealt_job());
    assert_eq!(server.post(&cancel, b"").await.status, 200);
    assert_eq!(server.get("/v1/receipts").await.status, 200);
    // Whoever comes back later is served: refusals cost nothing.
    while server.get("/v1/status").await.status != 200 {}
    assert_eq!(server.post("/v1/shutdown", b"").await.status, 200);
    server.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn abuse_06_a_request_that_dribbles_is_cut_within_ten_seconds() {
    let server = Server::start().await;
    let json = "Content-Length: 1000\r\nContent-Type: application/json\r\n";
    let plan = server.head("POST", "/v1/plan", json) + "\r\n";
    tokio::time::pause();
    for (begun, answer) in [("GET /", ""), (&plan, "HTTP/1.1 408")] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let said = dribble(&mut stream).await;
        assert!(said.starts_with(answer), "{begun}: {said}");
    }
}

#[tokio::test]
async fn a_connection_that_idles_is_closed() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = server.head("GET", "/v1/nothing", "") + "\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::pause();
    let since = tokio::time::Instant::now();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(since.elapsed() <= Duration::from_secs(11));
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

/// Sends a byte a second until the server has had enough; what it says then.
async fn dribble(stream: &mut TcpStream) -> String {
    let since = tokio::time::Instant::now();
    let (mut reader, mut writer) = stream.split();
    let mut said = Vec::new();
    let dribbling = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = writer.write_all(b"x").await;
        }
    };
    tokio::select! {
        never = dribbling => match never {},
        _ = reader.read_to_end(&mut said) => {}
    }
    let taken = since.elapsed();
    assert!(taken <= Duration::from_secs(12), "it took {taken:?}");
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn a_blob_goes_in_once_and_its_hash_is_checked() {
    let server = Server::start().await;
    let bytes = vec![7; 100_000];
    let info = dealt::blob(&bytes);
    let named = format!("/v1/blobs?hash={:#}", info.blob);
    // An empty body with a hash is a question.
    assert_eq!(server.post(&named, b"").await.status, 404);
    assert_eq!(server.post(&named, b"other").await.status, 422);
    let stored: BlobInfo = server.post(&named, &bytes).await.json();
    assert_eq!(stored, info);
    let used = server.store.blobs().used_bytes();
    assert_eq!(server.post(&named, b"").await.json::<BlobInfo>(), info);
    assert_eq!(server.post(&named, &bytes).await.json::<BlobInfo>(), info);
    assert_eq!(
        server.post("/v1/blobs", &bytes).await.json::<BlobInfo>(),
        info
    );
    assert_eq!(server.store.blobs().used_bytes(), used);

    let chunked = "Transfer-Encoding: chunked\r\n";
    let answer = server
        .with(
            "POST",
            "/v1/blobs",
            chunked,
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(answer.json::<BlobInfo>(), dealt::blob(b"abcde"));
}

#[tokio::test]
async fn a_full_store_says_so_in_a_sentence() {
    let server = Server::start().await;
    let used = server.store.blobs().used_bytes();
    let bytes = vec![1; usize::try_from(QUOTA_BYTES).unwrap() + 1];
    let answer = server.post("/v1/blobs", &bytes).await;
    assert_eq!(answer.status, 507);
    let error: ApiError = answer.json();
    assert!(error.error.contains("raise the quota"), "{}", error.error);
    assert_eq!(error.exit_code, 7);
    assert_eq!(server.store.blobs().used_bytes(), used);
}

#[tokio::test]
async fn a_submission_becomes_an_order_with_what_is_small_inline() {
    let mut server = Server::start().await;
    let wanted = submission(9);
    let body = serde_json::to_vec(&wanted).unwrap();
    let missing = server.post_json("/v1/jobs", &body).await;
    assert_eq!(missing.status, 409);
    assert!(missing.json::<ApiError>().error.contains("upload it first"));

    server.post("/v1/blobs", b"spec").await;
    server.post("/v1/blobs", b"input").await;
    let submitted: Submitted = server.post_json("/v1/jobs", &body).await.json();
    assert_eq!(submitted.job, wanted.job);
    let order = server.orders.recv().await.unwrap();
    assert_eq!((order.job, order.inline.len()), (wanted.job, 2));
    assert_eq!(&*order.inline[0].bytes, b"spec");
    assert_eq!(order.budget, server.max_price());
    assert_eq!(&*order.principal, "default");

    let plan: PlanInfo = server.post_json("/v1/plan", &body).await.json();
    assert_eq!(plan.budget, server.max_price());
}

#[tokio::test]
async fn bad_bodies_are_refused_in_words() {
    let server = Server::start().await;
    let mut body = serde_json::to_value(submission(9)).unwrap();
    body["runtime"] = "cobol".into();
    let unknown = server
        .post_json("/v1/plan", body.to_string().as_bytes())
        .await;
    assert_eq!(unknown.status, 422);
    let error: ApiError = unknown.json();
    assert!(error.error.contains("wgsl, wasm"), "{}", error.error);
    assert_eq!(error.exit_code, 2);

    body["surprise"] = 1.into();
    let answer = server
        .post_json("/v1/plan", body.to_string().as_bytes())
        .await;
    assert!(answer.json::<ApiError>().error.contains("surprise"));

    let large = vec![b' '; JSON_BYTES_MAX + 1];
    assert_eq!(server.post_json("/v1/plan", &large).await.status, 413);
    assert_eq!(server.get("/v1/plan").await.status, 405);
    assert_eq!(server.get("/v1/receipts?limit=-1").await.status, 400);
}

#[tokio::test]
async fn things_are_found_by_the_beginning_of_their_ids() {
    let server = Server::start().await;
    let jobs: Vec<JobInfo> = server.get("/v1/jobs").await.json();
    assert_eq!(jobs.len(), 2);
    assert!(jobs[0].submitted_ms >= jobs[1].submitted_ms);
    let one: Vec<JobInfo> = server.get("/v1/jobs?limit=1").await.json();
    assert_eq!(one[0].job, jobs[0].job);
    let job: JobInfo = server.get("/v1/jobs/0101").await.json();
    assert_eq!((job.job, job.state.as_str()), (dealt::job(1), "done"));
    assert_eq!(job.outputs[0].name, "out");
    assert_eq!(server.get("/v1/jobs/ffff").await.status, 404);
    assert_eq!(server.get("/v1/jobs/01").await.status, 404);

    let receipts: Vec<ReceiptInfo> = server.get("/v1/receipts").await.json();
    let id = format!("{:#}", receipts[0].receipt);
    let receipt: ReceiptInfo = server
        .get(&format!("/v1/receipts/{}", &id[..9]))
        .await
        .json();
    assert_eq!(receipt, receipts[0]);
    let bundle = server.get(&format!("/v1/receipts/{id}/bundle")).await;
    assert_eq!(
        Bundle::verify(&bundle.body).unwrap().receipt,
        receipt.receipt
    );

    let channels: Vec<ChannelInfo> = server.get("/v1/channels").await.json();
    let id = format!("{:#}", channels[0].channel);
    let channel: ChannelInfo = server
        .get(&format!("/v1/channels/{}", &id[..7]))
        .await
        .json();
    assert_eq!((&channel, channel.paying), (&channels[0], true));

    let offers: Vec<OfferInfo> = server.get("/v1/offers").await.json();
    let by_peer = format!("/v1/offers/{}", offers[0].peer);
    assert_eq!(server.get(&by_peer).await.json::<OfferInfo>(), offers[0]);
    let status: Status = server.get("/v1/status").await.json();
    assert_eq!((status.offers, status.jobs_open), (1, 0));
}

#[tokio::test]
async fn outputs_come_by_name_and_events_until_they_end() {
    let server = Server::start().await;
    let gone = server
        .get(&format!("/v1/jobs/{}/outputs/out", server.dealt_job()))
        .await;
    assert_eq!(gone.status, 404);
    assert!(gone.json::<ApiError>().error.contains("no longer here"));
    // A small one is accepted, and can be read, before it is a blob.
    let output = "/v1/jobs/0202/outputs";
    let answer = server.get(&format!("{output}/out")).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, OUTPUT));
    server.store.blobs().put_bytes(OUTPUT, None).unwrap();
    let answer = server.get(&format!("{output}/out")).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, OUTPUT));
    assert!(
        answer
            .head
            .contains("content-type: application/octet-stream")
    );
    let other = server.get(&format!("{output}/in")).await;
    assert!(
        other
            .json::<ApiError>()
            .error
            .contains("has the outputs out")
    );

    let answer = server.get("/v1/jobs/0101/events").await;
    assert!(answer.head.contains("content-type: application/x-ndjson"));
    let events = answer.events();
    assert_eq!(events, [JobEventInfo::Submitted, JobEventInfo::Started]);
}

#[tokio::test]
async fn a_job_of_an_earlier_run_is_followed_from_the_store() {
    let server = Server::start().await;
    let events = server.get("/v1/jobs/0202/events").await.events();
    let [submitted, accepted, ended] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(submitted, &JobEventInfo::Submitted);
    assert!(
        matches!(accepted, JobEventInfo::Accepted { amount, .. } if amount.to_string() == "0.00101")
    );
    assert!(matches!(ended, JobEventInfo::Ended { state, .. } if state == "done"));
}

#[tokio::test]
async fn a_stop_is_answered_and_then_nothing_listens() {
    let server = Server::start().await;
    // An idle connection does not hold the server up.
    let _idle = TcpStream::connect(server.address).await.unwrap();
    let status: Status = server.post("/v1/shutdown", b"").await.json();
    assert_eq!(status.network, dealt::NETWORK);
    server.serving.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// A server on loopback, its played driver, and what that was asked.
struct Server {
    address: SocketAddr,
    store: Store,
    orders: mpsc::Receiver<Box<JobOrder>>,
    serving: JoinHandle<io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_through(Gates::new()).await
    }

    async fn start_through(gates: Gates) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dealt = dealt::deal(2, true);
        let store = store_of(dir.path(), &dealt.client).await;
        let (transport, mut events) = Transport::start(TransportConfig {
            secret: [3; 32],
            network: dealt::NETWORK.to_owned(),
            agent: "test".to_owned(),
            listen: Vec::new(),
            bootstrap: Vec::new(),
            lan: true,
            limits: TransportLimits::default(),
        })
        .unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let (handle, asks) = handle::open(facts(&dealt), store.clone(), transport);
        let (ordered, orders) = mpsc::channel(8);
        let (stop, stopped) = oneshot::channel();
        let [client, _] = dealt.peers;
        tokio::spawn(play(client, asks, ordered, stop));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = async move { drop(stopped.await) };
        let served = serve_through(gates, handle, listener, Token::new(TOKEN), stop);
        Self {
            address,
            store,
            orders,
            serving: tokio::spawn(served),
            _dir: dir,
        }
    }

    fn dealt_job(&self) -> String {
        format!("{:#}", dealt::job(1))
    }

    fn max_price(&self) -> suanli_protocol::units::Amount {
        "2.5".parse().unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.with("GET", path, "", b"").await
    }

    async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let length = format!("Content-Length: {}\r\n", body.len());
        self.with("POST", path, &length, body).await
    }

    async fn post_json(&self, path: &str, body: &[u8]) -> Answer {
        let headers = format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        self.with("POST", path, &headers, body).await
    }

    async fn with(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        self.raw(&self.head(method, path, headers), body).await
    }

    fn head(&self, method: &str, path: &str, headers: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n{headers}",
            self.address
        )
    }

    async fn raw(&self, head: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("{head}Connection: close\r\n\r\n").into_bytes();
        request.extend_from_slice(body);
        // A server that has heard enough may close before it was sent all.
        let _ = stream.write_all(&request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Answer::parse(&answer)
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.expect("an answer with a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let head = head.to_ascii_lowercase();
        let mut body = bytes[end + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Self {
            status: head[9..12].parse().unwrap(),
            head,
            body,
        }
    }

    fn events(&self) -> Vec<JobEventInfo> {
        self.body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<JobLine>(line).unwrap().event)
            .collect()
    }

    fn json<T: DeserializeOwned>(&self) -> T {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {text}", self.status))
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let digits = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(digits, 16).unwrap();
        if size == 0 {
            return body;
        }
        rest = &rest[end + 2..];
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

fn facts(dealt: &Dealt) -> NodeFacts {
    NodeFacts {
        network: dealt::NETWORK.to_owned(),
        unit: "credit".to_owned(),
        region: "CN-BJ".to_owned(),
        peer: dealt.client_peer,
        account: dealt.peers[0].account(),
        started_ms: wall_ms(),
        providing: false,
        local_only: true,
        sandbox: "process".to_owned(),
        max_price: "2.5".parse().unwrap(),
    }
}

/// Answers as the driver does, from a peer that nothing happens to.
async fn play(
    peer: Peer,
    mut asks: AskQueue,
    ordered: mpsc::Sender<Box<JobOrder>>,
    stop: oneshot::Sender<()>,
) {
    while let Some(ask) = asks.0.recv().await {
        match ask {
            Ask::Snapshot(reply) => drop(
                reply.send(Snapshot {
                    // The second job is one of an earlier run.
                    jobs: (peer.jobs().into_iter())
                        .filter(|view| view.job != dealt::job(1))
                        .collect(),
                    work: peer.work(),
                    channels: peer.channels(),
                    slots_used: 0,
                    listen: Vec::new(),
                    store_failed: None,
                    paused: None,
                }),
            ),
            // The second job is one of an earlier run.
            Ask::Job(job, reply) if job == dealt::job(1) => drop(reply.send(None)),
            Ask::Job(job, reply) => drop(reply.send(peer.job(job))),
            Ask::Offers(reply) => drop(reply.send(peer.book().iter().cloned().collect())),
            Ask::Plan(_, reply) => drop(reply.send(Plan {
                candidates: Vec::new(),
                fitting: 0,
                misfits: Vec::new(),
                unfit: 0,
            })),
            Ask::Submit(order, reply) => {
                ordered.send(order).await.unwrap();
                drop(reply.send(Ok(())));
            }
            Ask::Challenge(_, reply) => drop(reply.send(Err(Unanswered::NothingClaimed))),
            Ask::Look(look) => looked(&peer, look),
            Ask::References(_, reply) => drop(reply.send(Err(Unreferred::NoOffer))),
            Ask::Cancel(_, reply) => drop(reply.send(false)),
            Ask::Settle(declaration, reply) => {
                drop(reply.send(Err(peer.may_settle(&declaration).unwrap_err())));
            }
            // Nobody follows the second any more.
            Ask::Watch(job, reply) if job == dealt::job(2) => drop(reply.send(None)),
            Ask::Watch(_, reply) => drop(reply.send(Some(watch_once().await))),
            Ask::Announce(reply) => {
                let _ = reply.send(());
            }
            Ask::Sequence(_, reply) => drop(reply.send(None)),
            Ask::Reached(_, _, reply) => drop(reply.send(())),
            Ask::Written(reply) => drop(reply.send(true)),
            Ask::Pause {
                until: Some(_),
                reply,
                ..
            } => drop(reply.send(Ok(()))),
            Ask::Pause { reply, .. } | Ask::Resume(reply) => {
                drop(reply.send(Err(NotPaused::SellsNothing)));
            }
            Ask::Neighbour(_) | Ask::Counted(..) => {}
            Ask::Stop(reply) => {
                let _ = reply.send(());
                drop(stop);
                return;
            }
        }
    }
}

/// Answers about accounts and principals.
fn looked(peer: &Peer, look: Look) {
    match look {
        Look::Standing(_, reply) => drop(reply.send(None)),
        Look::Staying(mut blobs, reply) => {
            blobs.retain(|blob| peer.is_staying(*blob));
            drop(reply.send(blobs));
        }
        Look::Budgets(reply) => drop(reply.send(peer.budgets())),
        Look::Budget(principal, reply) => drop(reply.send(peer.budget(&principal))),
        Look::Report(account, reply) => drop(reply.send(peer.report(account, wall()))),
        Look::Reports(reply) => drop(reply.send(peer.reports(wall()))),
    }
}

/// One line of the past, one that comes, and the end.
async fn watch_once() -> Watch {
    let line = |event| JobLine {
        at_ms: 1,
        up_us: Some(1),
        event,
    };
    let (sender, lines) = mpsc::channel(1);
    sender.send(line(JobEventInfo::Started)).await.unwrap();
    Watch {
        past: vec![line(JobEventInfo::Submitted)],
        lines,
    }
}
