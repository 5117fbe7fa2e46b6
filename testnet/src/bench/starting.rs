//! How long a node takes from its data directory to its rebuilt core, after a
//! long history: once from all records, once from a checkpoint.
//!
//! The history is receipts that nothing refers to any more, as those of settled
//! jobs are; the time goes into reading, checking and verifying them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use suanli_node::{
    compaction::Keeper,
    records,
    store::{self, Lsn, Store},
};
use suanli_protocol::{
    delegation::Delegation,
    envelope::{Extensions, Signer},
    ids::{AgreementId, BlobId, Hash, NetworkId},
    offer::Name,
    peer::{Config, Peer, Timing},
    receipt::{Outcome, Receipt, ReceiptKey},
    record::{Lsn as CoreLsn, Record},
    registry::Verification,
    units::{Amount, Meter, Mono, Now, Usage, Wall},
    wire::List,
};

use super::{figures::Figure, member::NETWORK};

/// Some day.
const DAY_MS: u64 = 1_790_000_000_000;

/// Writes that many receipts in `dir`, and starts from them.
pub(super) async fn measure(receipts: u32, dir: &Path) -> anyhow::Result<Vec<Figure>> {
    let network = NetworkId::of(NETWORK);
    let (signer, account) = (
        Signer::new(&[1; 32], network),
        Signer::new(&[2; 32], network),
    );
    let config = core(&signer, &account);
    let store = open(dir, network)?;
    for number in 1..=receipts {
        let record = Record::Receipted(receipt(&signer, number)).encode();
        store.append(Lsn::new(number.into()), record).await?;
    }
    store.close().await;

    let (store, all, from_all) = start(dir, &config, &signer)?;
    let keeper = Keeper {
        store: store.clone(),
        config: config.clone(),
        signer: signer.clone(),
        history: Duration::from_secs(400 * 86_400),
    };
    keeper.compact().await?;
    drop(keeper);
    store.close().await;
    let (store, few, from_checkpoint) = start(dir, &config, &signer)?;
    store.close().await;
    let figure = |how: &str, records: usize, took: Duration| {
        Figure::one(
            format!("start after {receipts} receipts, {how}"),
            "ms",
            took.as_secs_f64() * 1000.0,
        )
        .note(format!("{records} records replayed"))
    };
    Ok(vec![
        figure("from all", all, from_all),
        figure("from a checkpoint", few, from_checkpoint),
    ])
}

/// The open store, how many records made the core, and how long it took.
fn start(dir: &Path, config: &Config, signer: &Signer) -> anyhow::Result<(Store, usize, Duration)> {
    let begin = Instant::now();
    let store = open(dir, signer.network())?;
    let mut replayed = Vec::new();
    for found in store.reader().replay() {
        let found = found?;
        let record = Record::decode(&found.payload, signer.network())?;
        replayed.push((CoreLsn(found.lsn.number()), record));
    }
    let count = replayed.len();
    let now = Now {
        mono: Mono::from_micros(0),
        wall: Wall::from_millis(DAY_MS),
    };
    let records = replayed.into_iter();
    let peer = Peer::restore(now, config.clone(), signer.clone(), [0; 32], records);
    let took = begin.elapsed();
    drop(peer);
    Ok((store, count, took))
}

fn open(dir: &Path, network: NetworkId) -> anyhow::Result<Store> {
    let config = store::Config {
        index_version: records::INDEX_VERSION,
        ..store::Config::default()
    };
    let opened = Store::open(dir, &config, records::indexer(network));
    Ok(opened.context("no store to start from")?.store)
}

fn core(signer: &Signer, account: &Signer) -> Config {
    let delegation = Delegation {
        node: signer.public().peer(),
        provides: true,
        consumes: true,
        extensions: Extensions::default(),
    };
    let since = Wall::from_millis(0);
    let delegation = account.sign(since, Wall::from_millis(u64::MAX), delegation);
    Config {
        account: account.public().account(),
        delegation: delegation.raw(),
        region: Name::default(),
        traffic: Amount::ZERO,
        provider: None,
        budgets: Default::default(),
        timing: Timing::default(),
    }
}

fn receipt(signer: &Signer, number: u32) -> suanli_protocol::envelope::Verified<Receipt> {
    let hash = Hash::of(&number.to_le_bytes());
    let at = Wall::from_millis(DAY_MS);
    let usage = [(Meter::JOB, 1), (Meter::GPU_MS, 20)]
        .map(|(meter, quantity)| Usage { meter, quantity })
        .to_vec();
    let body = Receipt {
        key: ReceiptKey {
            agreement: AgreementId(hash),
            unit: 0,
            attempt: 1,
            index: 0,
            last: true,
        },
        outcome: Outcome::Completed,
        program: BlobId(hash),
        inputs: hash,
        outputs: List::default(),
        started: at,
        ended: at,
        usage: List::truncated(usage),
        amount: Amount::from_micros(1),
        verification: Verification::HASHES,
        extensions: Extensions::default(),
    };
    signer.sign(at, Wall::from_millis(u64::MAX), body)
}
