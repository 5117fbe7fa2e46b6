//! `suanli run` against a daemon that only pretends.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::Request,
    http::{StatusCode, header::AUTHORIZATION},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::Value;
use suanli_protocol::ids::{OfferId, PeerId, ReceiptId};

use super::*;
use crate::{
    api::types::{CandidateInfo, OutputInfo, UnitInfo},
    cli::Global,
    data_dir::{ApiAddress, DataDir},
    identity::Identity,
};

const JOB: [u8; 16] = [5; 16];

/// How the pretended job ends, and what the daemon has on offer.
#[derive(Debug, Clone, Copy)]
struct Script {
    state: &'static str,
    reason: Option<&'static str>,
    candidates: usize,
    /// Of an array: how its units are.
    units: &'static [&'static str],
}

const DONE: Script = Script {
    state: "done",
    reason: None,
    candidates: 1,
    units: &[],
};

fn job_info(script: Script) -> JobInfo {
    let output = 42_u32.to_le_bytes();
    JobInfo {
        job: JobId::from_bytes(JOB),
        name: "noop".into(),
        principal: "default".into(),
        submitted_ms: 1,
        state: script.state.into(),
        reason: script.reason.map(|word| (word.into(), "in words".into())),
        attempt: 1,
        provider: Some(PeerId::from_bytes([2; 32])),
        region: Some("CN-NX".into()),
        agreement: None,
        done: 1,
        total: 1,
        checkpoints: Vec::new(),
        units: None,
        spent: Amount::from_micros(1_010),
        declined: Vec::new(),
        receipts: Vec::new(),
        outputs: vec![OutputInfo {
            name: "out".into(),
            blob: BlobId(Hash::of(&output)),
            bytes: 4,
        }],
    }
}

fn unit_infos(script: Script) -> Vec<UnitInfo> {
    let outputs = job_info(script).outputs;
    let units = script.units.iter().zip(0..).map(|(state, unit)| UnitInfo {
        unit,
        state: (*state).to_owned(),
        reason: (*state == "failed").then(|| "trapped".to_owned()),
        provider: None,
        receipt: (*state != "open").then(|| ReceiptId(Hash::of(&[7]))),
        outputs: outputs.clone(),
    });
    units.collect()
}

fn plan_info(script: Script) -> PlanInfo {
    let candidate = CandidateInfo {
        slots: 1,
        peer: PeerId::from_bytes([2; 32]),
        offer: OfferId(Hash::of(b"offer")),
        region: "CN-NX".into(),
        device: "llvmpipe".into(),
        expected_ms: 10,
        finish_ms: 15,
        wait_ms: 0,
        transfer_ms: 5,
        carbon_mg: None,
        traffic: Amount::ZERO,
        price: Amount::from_micros(1_010),
        cap: Amount::from_micros(2_000),
    };
    PlanInfo {
        unit: "credit".into(),
        budget: Amount::from_micros(10_000_000),
        left: None,
        candidates: vec![candidate; script.candidates],
        fitting: script.candidates,
        unfit: 0,
        nowhere: Vec::new(),
        misfits: Vec::new(),
    }
}

/// The stream breaks off in the middle at first, as it does when its reader
/// was too slow.
fn events(script: Script, whole: bool) -> String {
    let begin = "{\"at_ms\":1,\"event\":\"submitted\"}\n\
         {\"at_ms\":2,\"event\":\"started\"}\n\
         {\"at_ms\":3,\"event\":\"progress\",\"done\":1,\"total\":2}\n";
    let end = format!(
        "{{\"at_ms\":4,\"event\":\"ended\",\"state\":\"{}\",\"reason\":null}}\n",
        script.state
    );
    if whole {
        format!("{begin}{end}")
    } else {
        begin.to_owned()
    }
}

async fn authorised(token: String, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION);
    if shown.is_some_and(|shown| shown.as_bytes() == format!("Bearer {token}").as_bytes()) {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

/// A daemon that plays a script, and the context of a command that finds it.
async fn play(dir: &Path, script: Script) -> Context {
    let data = DataDir::new(dir);
    let network = suanli_protocol::ids::NetworkId::of("suanli");
    let token = Identity::open_or_create(&data, network).unwrap().token;
    let asked = Arc::new(AtomicBool::new(false));
    let stream = move || {
        let whole = asked.swap(true, Ordering::Relaxed);
        std::future::ready(events(script, whole))
    };
    let blob = |bytes: Bytes| async move {
        Json(BlobInfo {
            blob: BlobId(Hash::of(&bytes)),
            bytes: u64::try_from(bytes.len()).unwrap(),
        })
    };
    let submit = |Json(_): Json<Submission>| async {
        Json(Submitted {
            job: JobId::from_bytes(JOB),
        })
    };
    let id = format!("{:#}", JobId::from_bytes(JOB));
    let router = Router::new()
        .route(
            "/v1/plan",
            post(move |Json(_): Json<Submission>| async move { Json(plan_info(script)) }),
        )
        .route("/v1/blobs", post(blob))
        .route("/v1/jobs", post(submit))
        .route(
            &format!("/v1/jobs/{id}"),
            get(move || async move { Json(job_info(script)) }),
        )
        .route(&format!("/v1/jobs/{id}/events"), get(stream))
        .route(
            &format!("/v1/jobs/{id}/outputs/out"),
            get(|| async { 42_u32.to_le_bytes().to_vec() }),
        )
        .route(
            &format!("/v1/jobs/{id}/units"),
            get(move || async move { Json(unit_infos(script)) }),
        )
        .route(
            "/v1/receipts/{id}/outputs/out",
            get(|| async { 42_u32.to_le_bytes().to_vec() }),
        )
        .layer(middleware::from_fn(move |request, next| {
            authorised(token.clone(), request, next)
        }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    data.write_api_address(&ApiAddress { address, pid: 1 })
        .unwrap();
    Context::new(Global {
        data_dir: Some(dir.to_owned()),
        config: None,
        set: Vec::new(),
        json: true,
    })
}

fn command(out: &Path, arguments: &[&str]) -> Command {
    use clap::FromArgMatches as _;
    let definition = <Command as Args>::augment_args(clap::Command::new("run"));
    let arguments = ["run", "job.toml"].iter().chain(arguments).copied();
    let matches = definition.get_matches_from(arguments);
    let mut command = Command::from_arg_matches(&matches).unwrap();
    out.clone_into(&mut command.out);
    command
}

/// The no-op example, with its output written to a file as well.
fn job(dir: &Path) -> PreparedJob {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/noop");
    std::fs::copy(example.join("noop.wgsl"), dir.join("noop.wgsl")).unwrap();
    let text = std::fs::read_to_string(example.join("job.toml")).unwrap();
    let text = text.replace("show = ", "file = \"answer/out.u32\"\nshow = ");
    std::fs::write(dir.join("job.toml"), text).unwrap();
    jobfile::read(&dir.join("job.toml")).unwrap()
}

async fn run(script: Script, arguments: &[&str]) -> (Result<(), Failure>, Option<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let context = play(dir.path(), script).await;
    let out = dir.path().join("results");
    let outcome = command(&out, arguments)
        .go(&context, &job(dir.path()))
        .await;
    (outcome, std::fs::read(out.join("answer/out.u32")).ok())
}

#[tokio::test]
async fn a_job_is_followed_over_a_broken_stream_and_its_outputs_written() {
    let (outcome, written) = run(DONE, &["-y"]).await;
    outcome.unwrap();
    assert_eq!(written, Some(42_u32.to_le_bytes().to_vec()));
}

/// The no-op example, three times.
fn array_job(dir: &Path) -> PreparedJob {
    job(dir);
    let text = std::fs::read_to_string(dir.join("job.toml")).unwrap();
    let text = text.replace("answer/out.u32", "answer/{unit}.u32");
    let text = format!("{text}\n[array]\nlist = [\"red\", \"green\", \"blue\"]\n");
    std::fs::write(dir.join("job.toml"), text).unwrap();
    jobfile::read(&dir.join("job.toml")).unwrap()
}

#[tokio::test]
async fn units_of_an_array_are_written_and_kept_when_it_fails() {
    let done = Script {
        units: &["done", "done", "done"],
        ..DONE
    };
    let failed = Script {
        state: "failed",
        reason: Some("trapped"),
        units: &["done", "failed", "open"],
        ..DONE
    };
    for (script, files) in [(done, [true, true, true]), (failed, [true, false, false])] {
        let dir = tempfile::tempdir().unwrap();
        let context = play(dir.path(), script).await;
        let out = dir.path().join("results");
        let job = array_job(dir.path());
        let outcome = command(&out, &["-y"]).go(&context, &job).await;
        for (unit, written) in files.into_iter().enumerate() {
            let file = out.join(format!("answer/{unit}.u32"));
            assert_eq!(file.exists(), written, "{}", file.display());
        }
        let folder = dir.path().display().to_string();
        match outcome {
            Ok(()) => assert_eq!(script.state, "done"),
            Err(failure) => {
                assert_eq!(failure.exit, Exit::JobFailed);
                insta::assert_snapshot!(failure.message.replace(&folder, ""));
            }
        }
    }
}

#[test]
fn a_dry_run_shows_the_first_and_the_last_unit() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(array::preview(&array_job(dir.path())));
}

#[tokio::test]
async fn a_dry_run_and_a_detached_one_write_nothing() {
    for flag in ["--dry-run", "-yd"] {
        let (outcome, written) = run(DONE, &[flag]).await;
        outcome.unwrap();
        assert_eq!(written, None);
    }
}

#[tokio::test]
async fn without_a_yes_nothing_runs() {
    let (outcome, written) = run(DONE, &[]).await;
    let failure = outcome.unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.message.contains("add -y"), "{failure}");
    assert_eq!(written, None);
}

#[tokio::test]
async fn without_a_provider_nothing_runs() {
    let nobody = Script {
        candidates: 0,
        ..DONE
    };
    for flag in ["-y", "--dry-run"] {
        let failure = run(nobody, &[flag]).await.0.unwrap_err();
        assert_eq!(failure.exit, Exit::NoProvider, "{failure}");
    }
}

#[tokio::test]
async fn a_jobs_end_is_the_commands_end() {
    for (state, reason, exit) in [
        ("failed", Some("device-lost"), Exit::JobFailed),
        ("failed", Some("deadline"), Exit::TimeLimit),
        ("cancelled", None, Exit::Cancelled),
        ("declined", Some("providers-used-up"), Exit::NoProvider),
    ] {
        let script = Script {
            state,
            reason,
            ..DONE
        };
        let (outcome, written) = run(script, &["-y"]).await;
        let failure = outcome.unwrap_err();
        assert_eq!(failure.exit, exit);
        assert!(failure.detail.is_some_and(|(name, _)| name == "job"));
        assert_eq!(written, None);
    }
}

#[tokio::test]
async fn a_wrong_token_and_a_stopped_daemon_end_with_3() {
    let dir = tempfile::tempdir().unwrap();
    let context = play(dir.path(), DONE).await;
    let data = DataDir::new(dir.path());
    std::fs::remove_file(data.token()).unwrap();
    let network = suanli_protocol::ids::NetworkId::of("suanli");
    Identity::open_or_create(&data, network).unwrap();
    let refused = context.client().unwrap().get::<Value>("/v1/plan").await;
    assert_eq!(Failure::from(refused.unwrap_err()).exit, Exit::NoDaemon);

    data.remove_api_address().unwrap();
    let failure = context.client().unwrap_err();
    assert_eq!(failure.exit, Exit::NoDaemon);
    assert!(failure.message.contains("suanli node"), "{failure}");
}
