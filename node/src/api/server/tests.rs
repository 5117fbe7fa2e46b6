//! The server as its callers see it, on a real socket, over a driver that is
//! played: it answers from a peer that has made two deals.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use suanli_protocol::{
    bundle::Bundle,
    envelope::Verified,
    offer::{ModelOffer, Name, Offer},
    peer::{Budget, Command, Input, Peer, Unanswered, Unreferred},
    rank::Plan,
    record::JobOrder,
    units::{Amount, Meter, Mono, Now, Price},
    wire::{List, Text},
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
        ApiError, BlobInfo, ChannelInfo, JobEventInfo, JobInfo, JobLine, KeyInfo, KeyMade,
        OfferInfo, PlanInfo, ReceiptInfo, Status, Submitted,
    },
    data_dir::DataDir,
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

#[tokio::test]
async fn abuse_65_without_a_good_key_no_model_is_asked() {
    let server = Server::start().await;
    let made = server.create("{\"name\":\"alice\"}").await;
    let secret = made.secret.tell();
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/small"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
    ] {
        for shown in [
            String::new(),
            "Authorization: Bearer sk-suanli-0\r\n".to_owned(),
            format!("Authorization: {secret}\r\n"),
            format!("Authorization: Bearer {secret}0\r\n"),
            format!("Authorization: Bearer {secret}\r\nAuthorization: Bearer {secret}\r\n"),
        ] {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\n{shown}",
                server.address
            );
            let answer = server.raw(&head, b"").await;
            assert_eq!(answer.status, 401, "{path} {shown}");
            let said: Value = answer.json();
            assert_eq!(said["error"]["code"], "invalid_api_key", "{path}");
            assert!(!said.to_string().contains(secret));
        }
    }
    // In the address it is no key, and no error repeats it.
    let in_path = format!("/v1/models?api_key={secret}");
    let head = format!("GET {in_path} HTTP/1.1\r\nHost: {}\r\n", server.address);
    assert_eq!(server.raw(&head, b"").await.status, 401);
}

#[tokio::test]
async fn a_key_asks_models_and_nothing_else() {
    let server = Server::start().await;
    let made = server.create("{\"name\":\"alice\"}").await;
    let secret = made.secret.tell();
    assert_eq!(made.base_url, format!("http://{}/v1", server.address));
    assert_eq!(server.by_key(secret, "/v1/models", None).await.status, 200);
    for path in [
        "/v1/status",
        "/v1/keys",
        "/v1/jobs",
        "/v1/budgets",
        "/v1/%6dodels",
        "/v1/chat/completions/",
        "/v1/models/../status/",
        "/v1/nothing",
        "/",
    ] {
        let answer = server.by_key(secret, path, None).await;
        if path.starts_with("/v1/models/") {
            // All below it is a model's name.
            assert_eq!(answer.status, 404, "{path}");
            continue;
        }
        assert_eq!(answer.status, 403, "{path}");
        let error: ApiError = answer.json();
        assert!(error.error.contains("asks models and nothing else"));
        assert!(!error.error.contains(secret));
    }
    for path in ["/v1/keys", "/v1/shutdown", "/v1/keys/alice/revoke"] {
        assert_eq!(server.by_key(secret, path, Some("{}")).await.status, 403);
    }
    // Another site may not use it either, nor a name that was pointed here.
    let shown = format!("Authorization: Bearer {secret}\r\n");
    let foreign = format!(
        "GET /v1/models HTTP/1.1\r\nHost: {}\r\n{shown}Origin: http://evil.example\r\n",
        server.address
    );
    assert_eq!(server.raw(&foreign, b"").await.status, 403);
    let pointed = format!("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n{shown}");
    assert_eq!(server.raw(&pointed, b"").await.status, 403);
    // The node's own token still opens everything.
    for path in ["/v1/models", "/v1/keys", "/v1/status"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn abuse_63_a_revoked_key_is_refused_at_once_and_its_name_is_free() {
    let server = Server::start().await;
    let first = server.create("{\"name\":\"alice\"}").await;
    let again = server.post_json("/v1/keys", b"{\"name\":\"alice\"}").await;
    assert_eq!(again.status, 409);
    let error: ApiError = again.json();
    assert!(
        error.error.contains("suanli key revoke alice"),
        "{}",
        error.error
    );

    let revoked: KeyInfo = server.post("/v1/keys/alice/revoke", b"").await.json();
    assert_eq!((&*revoked.name, &*revoked.state), ("alice", "revoked"));
    let old = first.secret.tell();
    assert_eq!(server.by_key(old, "/v1/models", None).await.status, 401);
    let listed: Vec<KeyInfo> = server.get("/v1/keys").await.json();
    assert_eq!(listed, [revoked]);
    // Twice is fine; what there is not is a clear error.
    assert_eq!(server.post("/v1/keys/alice/revoke", b"").await.status, 200);
    for nobody in ["bob", "..%2fshutdown", "gateway"] {
        let path = format!("/v1/keys/{nobody}/revoke");
        assert_eq!(server.post(&path, b"").await.status, 404, "{nobody}");
    }

    let second = server.create("{\"name\":\"alice\"}").await;
    assert_ne!(second.secret.tell(), old);
    let answer = server
        .by_key(second.secret.tell(), "/v1/models", None)
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(server.by_key(old, "/v1/models", None).await.status, 401);
    // What is on disk is all of it, and no secret.
    let file = std::fs::read_to_string(server.dir.path().join("gateway.keys")).unwrap();
    assert!(!file.contains(second.secret.tell()) && !file.contains(old));
    let kept = KeyFile::open(&DataDir::new(server.dir.path())).unwrap();
    assert!(!format!("{kept:?}").contains("sk-suanli-"));
}

#[tokio::test]
async fn a_wrong_order_for_a_key_is_refused_in_words() {
    let server = Server::start().await;
    for (order, why) in [
        ("{\"name\":\"gateway\"}", "no name for a key"),
        ("{\"name\":\"a b\"}", "no name for a key"),
        ("{\"name\":\"a\",\"days\":3}", "name its amount"),
        ("{\"name\":\"a\",\"budget\":\"1\",\"days\":0}", "1 to 366"),
        ("{\"name\":\"a\",\"requests_per_minute\":0}", "leave it out"),
        ("{\"name\":\"a\",\"expires_days\":0}", "expires in 0 days"),
        ("{\"name\":\"a\",\"models\":[\"\"]}", "no model's name"),
        ("{\"name\":\"a\",\"rate\":1}", "unknown field"),
    ] {
        let answer = server.post_json("/v1/keys", order.as_bytes()).await;
        assert_eq!(answer.status, 422, "{order}");
        let error: ApiError = answer.json();
        assert!(error.error.contains(why), "{}", error.error);
    }
    assert_eq!(server.get("/v1/keys").await.json::<Vec<KeyInfo>>(), []);
}

#[tokio::test]
async fn a_key_sees_and_uses_the_models_that_it_names() {
    let server = Server::start_with(Gates::new(), vec![served(&["small", "large"])]).await;
    let made = server
        .create("{\"name\":\"alice\",\"models\":[\"small\",\"later\"]}")
        .await;
    let secret = made.secret.tell();
    let ids = |answer: Answer| {
        let list: Value = answer.json();
        let all = list["data"].as_array().unwrap().clone();
        let ids = all
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids(server.get("/v1/models").await), ["large", "small"]);
    assert_eq!(
        ids(server.by_key(secret, "/v1/models", None).await),
        ["small"]
    );
    let small = server.by_key(secret, "/v1/models/small", None).await;
    assert_eq!(small.status, 200);
    let chat = "/v1/chat/completions";
    for answer in [
        server.by_key(secret, "/v1/models/large", None).await,
        server.by_key(secret, chat, Some(&question("large"))).await,
        server.by_key(secret, chat, Some(&question("later"))).await,
    ] {
        assert_eq!(answer.status, 404);
        let said: Value = answer.json();
        assert_eq!(said["error"]["code"], "model_not_found");
        assert_eq!(said["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn a_key_is_a_principal_and_its_lease_costs_no_more_than_it_has_left() {
    let mut server = Server::start_with(Gates::new(), vec![served(&["small"])]).await;
    let chat = "/v1/chat/completions";
    let none = server.create("{\"name\":\"none\",\"budget\":\"0\"}").await;
    let refused = server
        .by_key(none.secret.tell(), chat, Some(&question("small")))
        .await;
    assert_eq!(refused.status, 429);
    let said: Value = refused.json();
    assert_eq!(said["error"]["code"], "insufficient_quota", "{said}");
    assert_eq!(said["error"]["type"], "insufficient_quota");

    // A whole lease costs 0.6; little is left, and half of it is taken.
    let some = server
        .create("{\"name\":\"some\",\"budget\":\"0.1\",\"days\":7}")
        .await;
    assert_eq!((some.key.budget, some.key.days), (amount("0.1"), 7));
    assert_eq!(some.key.left, amount("0.1"));
    for (secret, principal, budget) in [
        (some.secret.tell(), "some", "0.05"),
        (TOKEN, "gateway", "0.6"),
    ] {
        let answer = server.by_key(secret, chat, Some(&question("small"))).await;
        // The lease that the played driver gives ends at once.
        assert_eq!(answer.status, 503);
        let order = server.orders.recv().await.unwrap();
        assert_eq!(&*order.principal, principal);
        assert_eq!(Some(order.budget), amount(budget), "{principal}");
    }
}

#[tokio::test]
async fn abuse_72_a_key_that_asks_too_often_is_told_when_to_come_back() {
    let server = Server::start().await;
    let made = server
        .create("{\"name\":\"ci\",\"requests_per_minute\":2}")
        .await;
    let secret = made.secret.tell();
    let asked = async || {
        let chat = "/v1/chat/completions";
        server.by_key(secret, chat, Some(&question("small"))).await
    };
    for remaining in [1, 0] {
        let answer = asked().await;
        assert_eq!(answer.status, 404);
        assert!(answer.head.contains("x-ratelimit-limit-requests: 2"));
        let left = format!("x-ratelimit-remaining-requests: {remaining}");
        assert!(answer.head.contains(&left), "{}", answer.head);
        assert!(answer.head.contains("x-ratelimit-reset-requests: "));
    }
    let refused = asked().await;
    assert_eq!(refused.status, 429);
    let wait = refused
        .head
        .lines()
        .find_map(|line| line.strip_prefix("retry-after: "));
    let wait: u32 = wait.unwrap().parse().unwrap();
    assert!((25..=30).contains(&wait), "{wait}");
    assert!(refused.head.contains("x-ratelimit-remaining-requests: 0"));
    let said: Value = refused.json();
    assert_eq!(said["error"]["code"], "rate_limit_exceeded");
    // Lists are not questions, and others are not slowed.
    assert_eq!(server.by_key(secret, "/v1/models", None).await.status, 200);
    let chat = "/v1/chat/completions";
    let other = server.by_key(TOKEN, chat, Some(&question("small"))).await;
    assert_eq!(other.status, 404);
    assert!(!other.head.contains("x-ratelimit"), "{}", other.head);
}

/// An offer of these models, by nobody else here.
fn served(models: &[&str]) -> Verified<Offer> {
    let model = |name: &&str| ModelOffer {
        name: Text::lossy(name),
        weights: dealt::blob(b"weights").blob,
        quantisation: Text::default(),
        context: 2048,
        device: 0,
        places: 1,
        places_free: 1,
        prefill_per_second: 0,
        decode_per_second: 0,
        prices: List::truncated(vec![
            price(Meter::TOKEN_IN, 1_000_000),
            price(Meter::TOKEN_OUT, 2_000_000),
        ]),
    };
    let (_, signer) = dealt::core_of(1);
    let body = Offer {
        models: List::truncated(models.iter().map(model).collect()),
        ..dealt::provider().offer
    };
    let now = wall();
    signer.sign(now, now.after(Duration::from_secs(3600)), body)
}

fn price(meter: Meter, micros: u64) -> Price {
    Price {
        meter,
        amount: Amount::from_micros(micros),
        per: 1_000_000,
    }
}

fn amount(text: &str) -> Option<Amount> {
    Some(text.parse().unwrap())
}

fn question(model: &str) -> String {
    format!("{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]}}")
}

/// A server on loopback, its played driver, and what that was asked.
struct Server {
    address: SocketAddr,
    store: Store,
    orders: mpsc::Receiver<Box<JobOrder>>,
    serving: JoinHandle<io::Result<()>>,
    dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_through(Gates::new()).await
    }

    async fn start_through(gates: Gates) -> Self {
        Self::start_with(gates, Vec::new()).await
    }

    /// With more offers in the book.
    async fn start_with(gates: Gates, offers: Vec<Verified<Offer>>) -> Self {
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
        tokio::spawn(play((client, offers), asks, ordered, stop));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = async move { drop(stopped.await) };
        let keys = KeyFile::open(&DataDir::new(dir.path())).unwrap();
        let behind = Behind {
            token: Token::new(TOKEN),
            keys,
            stock: None,
        };
        let served = serve_through(gates, handle, listener, behind, stop);
        Self {
            address,
            store,
            orders,
            serving: tokio::spawn(served),
            dir,
        }
    }

    fn dealt_job(&self) -> String {
        format!("{:#}", dealt::job(1))
    }

    fn max_price(&self) -> Amount {
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

    /// Makes a key.
    async fn create(&self, order: &str) -> KeyMade {
        self.post_json("/v1/keys", order.as_bytes()).await.json()
    }

    /// Asks as whoever has that secret does: a body is posted.
    async fn by_key(&self, secret: &str, path: &str, body: Option<&str>) -> Answer {
        let method = body.map_or("GET", |_| "POST");
        let body = body.unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {secret}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        self.raw(&head, body.as_bytes()).await
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
        audit_percent: 0,
    }
}

/// Answers as the driver does, from a peer that nothing happens to.
async fn play(
    (mut peer, offers): (Peer, Vec<Verified<Offer>>),
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
            Ask::Offers(reply) => {
                let all = peer.book().iter().chain(&offers).cloned();
                drop(reply.send(all.collect()));
            }
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
            Ask::Grant(budgets, reply) => {
                granted(&mut peer, budgets);
                let _ = reply.send(());
            }
            Ask::Neighbour(_) | Ask::Counted(..) | Ask::Forged(..) => {}
            Ask::Stop(reply) => {
                let _ = reply.send(());
                drop(stop);
                return;
            }
        }
    }
}

fn granted(peer: &mut Peer, budgets: BTreeMap<Name, Budget>) {
    let now = Now {
        mono: Mono::default(),
        wall: wall(),
    };
    peer.handle(now, Input::Command(Command::Grant(budgets)));
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
