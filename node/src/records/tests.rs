//! Records on a real disk, found again by what people ask for.

use std::path::Path;

use suanli_protocol::{bundle::Bundle, receipt::Verdict, record::JobEnd};

use super::{dealt::Dealt, *};
use crate::{
    api::views,
    store::{Config, Opened},
};

/// What the blobs of these stores may take.
pub(crate) const QUOTA_BYTES: u64 = 1024 * 1024;

/// A store in `dir` that holds these records.
pub(crate) async fn store_of(dir: &Path, records: &[Record]) -> Store {
    let mut config = Config {
        index_version: INDEX_VERSION,
        ..Config::default()
    };
    config.blobs.quota_bytes = QUOTA_BYTES;
    let Opened { store, .. } = Store::open(dir, &config, indexer(dealt::network())).unwrap();
    let mut lsn = Lsn::NONE;
    for record in records {
        lsn = lsn.next();
        store.append(lsn, record.encode()).await.unwrap();
    }
    store.journal().wait_durable(lsn).await.unwrap();
    store
}

/// Both sides' archives of some deals.
async fn archives(dir: &Path, dealt: &Dealt) -> [Archive; 2] {
    let client = store_of(&dir.join("client"), &dealt.client).await;
    let provider = store_of(&dir.join("provider"), &dealt.provider).await;
    [client, provider].map(|store| Archive::new(store, dealt::NETWORK))
}

#[tokio::test]
async fn both_sides_give_the_same_bundle_for_quotes_and_firm_takes() {
    for firm in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let dealt = dealt::deal(3, firm);
        assert_eq!(dealt.receipts.len(), 3);
        let [client, provider] = archives(dir.path(), &dealt).await;
        for &receipt in &dealt.receipts {
            let bytes = client.bundle(receipt).await.unwrap().unwrap();
            assert_eq!(
                Some(&bytes),
                provider.bundle(receipt).await.unwrap().as_ref()
            );
            let proof = Bundle::verify(&bytes).unwrap();
            assert_eq!((proof.receipt, proof.take), (receipt, firm));
            assert_eq!(proof.verdict, Some(Verdict::Accepted));
            assert!(proof.paid && proof.acknowledged);
        }
    }
}

#[tokio::test]
async fn a_small_output_is_read_from_the_record_that_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    let dealt = dealt::deal(1, false);
    let [client, provider] = archives(dir.path(), &dealt).await;
    let (receipt, blob) = (dealt.receipts[0], BlobId(Hash::of(dealt::OUTPUT)));
    let bytes = client.small_output(receipt, blob).await.unwrap();
    assert_eq!(bytes.as_deref(), Some(dealt::OUTPUT));
    let other = BlobId(Hash::of(b"something else"));
    assert_eq!(client.small_output(receipt, other).await.unwrap(), None);
    assert_eq!(provider.small_output(receipt, blob).await.unwrap(), None);
}

#[tokio::test]
async fn a_receipts_story_is_whole_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let dealt = dealt::deal(2, false);
    let sides = archives(dir.path(), &dealt).await;
    for (archive, me) in sides.iter().zip([dealt.client_peer, dealt.provider_peer]) {
        let newest = archive.newest_receipts(10).await.unwrap();
        let ids: Vec<_> = newest.iter().map(|s| ReceiptId(s.receipt.hash())).collect();
        let backwards: Vec<_> = dealt.receipts.iter().rev().copied().collect();
        assert_eq!(ids, backwards);
        assert_eq!(archive.newest_receipts(1).await.unwrap().len(), 1);

        let info = views::receipt_info(&newest[0], me);
        assert_eq!(info.job, dealt.jobs[1]);
        assert_eq!(info.bought, me == dealt.client_peer);
        assert_eq!(
            (info.outcome.as_str(), info.region.as_str()),
            ("completed", "CN-NX")
        );
        assert_eq!(info.verdict.as_deref(), Some("accepted"));
        assert!(info.paid && info.acknowledged && info.last);
        assert_eq!(info.amount.to_string(), "0.00101");
        assert_eq!(info.outputs[0].name, "out");
    }
}

#[tokio::test]
async fn an_ended_job_is_told_from_the_store_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dealt = dealt::deal(2, true);
    let [client, provider] = archives(dir.path(), &dealt).await;
    assert_eq!(
        client.newest_jobs(10).await.unwrap(),
        [dealt.jobs[1], dealt.jobs[0]]
    );
    let story = client.job(dealt.jobs[0]).await.unwrap().unwrap();
    assert_eq!(story.end.map(|(end, _)| end), Some(JobEnd::Done));
    let info = views::stored_job_info(&story);
    assert_eq!(info.receipts, [dealt.receipts[0]]);
    assert_eq!(info.provider, Some(dealt.provider_peer));
    assert_eq!(
        (info.state.as_str(), info.done, info.total, info.attempt),
        ("done", 1, 1, 1)
    );
    assert_eq!(info.region.as_deref(), Some("CN-NX"));
    // On the provider's side it is somebody else's job.
    assert!(provider.job(dealt.jobs[0]).await.unwrap().is_none());
    assert!(provider.newest_jobs(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn ids_are_found_by_any_number_of_digits() {
    let dir = tempfile::tempdir().unwrap();
    let dealt = dealt::deal(2, true);
    let [client, _] = archives(dir.path(), &dealt).await;
    let receipt = dealt.receipts[0];
    let digits = format!("{receipt:#}");
    for count in 4..=digits.len() {
        let found = client.receipts_by_prefix(&digits[..count]).await.unwrap();
        assert!(found.contains(&receipt), "{count} digits");
    }
    assert_eq!(
        client.jobs_by_prefix("01010").await.unwrap(),
        [dealt.jobs[0]]
    );
    assert_eq!(client.jobs_by_prefix("0").await.unwrap().len(), 2);
    assert!(client.jobs_by_prefix("01011").await.unwrap().is_empty());
    assert!(client.jobs_by_prefix("é!").await.unwrap().is_empty());
}

#[tokio::test]
async fn nothing_is_proved_before_its_parts_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let dealt = dealt::deal(1, false);
    let receipt = dealt.receipts[0];
    let is_deal = |record: &Record| matches!(record, Record::Took { .. });
    let without_deal: Vec<_> = dealt
        .client
        .iter()
        .filter(|record| !is_deal(record))
        .cloned()
        .collect();
    let store = store_of(&dir.path().join("a"), &without_deal).await;
    let archive = Archive::new(store, dealt::NETWORK);
    assert!(archive.bundle(receipt).await.unwrap().is_none());
    assert!(archive.receipt(receipt).await.unwrap().is_none());

    let unpaid: Vec<_> = dealt
        .provider
        .iter()
        .filter(|record| !matches!(record, Record::Earned { .. }))
        .cloned()
        .collect();
    let store = store_of(&dir.path().join("b"), &unpaid).await;
    let archive = Archive::new(store, dealt::NETWORK);
    let proof = Bundle::verify(&archive.bundle(receipt).await.unwrap().unwrap()).unwrap();
    assert!(!proof.paid && !proof.acknowledged);
}

#[tokio::test]
async fn another_networks_records_are_an_error_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let dealt = dealt::deal(1, false);
    let store = store_of(dir.path(), &dealt.client).await;
    let archive = Archive::new(store, "another");
    let error = archive.receipt(dealt.receipts[0]).await.unwrap_err();
    assert!(
        error.to_string().contains("used for another network?"),
        "{error}"
    );
}
