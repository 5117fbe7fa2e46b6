//! References between peers: who asks for them, who shows them, what they come to.

use std::time::Duration;

use suanli_protocol::{
    deal::{UnitRange, Work},
    envelope::{Extensions, Raw, Signer},
    ids::{AccountId, AgreementId, BlobId, Hash, NetworkId, ReceiptId},
    limits::{REFERENCES_MAX, REFERENCES_PER_PEER},
    message::{Frame, Message},
    peer::{Command, Event, Peer, Report, Unreferred},
    receipt::{Acceptance, Outcome, Receipt, ReceiptKey, Verdict},
    record::{JobEnd, JobOrder, Record},
    reference::Reference,
    registry::{Reason, Verification},
    standing::{REFERENCE_AGE_MAX, Weight},
    units::{Price, Wall},
    wire::List,
};

use crate::{
    puppet,
    world::{Fate, World, account_signer, delegate, micros, network, node_signer, offer, order},
};

fn account(number: usize) -> AccountId {
    account_signer(number).public().account()
}

/// An array for some providers, whose results are compared.
fn array(number: u8, count: u32, world: &World, providers: &[usize]) -> JobOrder {
    let mut order = order(number);
    order.budget = micros(9_000_000);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count }]),
        inputs_each: 0,
    };
    let providers = providers.iter().map(|&provider| world.id(provider));
    order.providers = List::truncated(providers.collect());
    order.verify.replicas = 2;
    order
}

/// A client that has bought of providers 1 and 2, and a provider 3 that it doesn't
/// know. The last nodes are made by hand.
fn acquainted(puppets: &[usize]) -> World {
    let mut world = World::new(3);
    for _ in puppets {
        world.add(None);
    }
    // One that it knows buys of one that it doesn't.
    for provider in [2, 3] {
        let known = &mut world.config_of(provider).known;
        known.insert(account(1), micros(1_000_000));
    }
    // And who is cheaper than all.
    let prices = offer(0).prices;
    let cheap = prices.iter().map(|price| Price {
        amount: micros(1),
        ..*price
    });
    world.offer_of(3).prices = List::truncated(cheap.collect());
    let mut world = world.start(puppets);
    let order = array(1, 12, &world, &[1, 2]);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    world
}

/// Provider 1 buys of 2 and 3.
fn buys(world: &mut World) {
    let order = array(2, 2, world, &[2, 3]);
    world.submit_at(1, order);
    let done = |world: &World| {
        let jobs = world.peer(1).jobs();
        jobs.iter().all(|job| job.end == Some(JobEnd::Done))
    };
    assert!(world.run_until(Duration::from_secs(60), done));
    world.pass(Duration::from_secs(2));
}

fn ends(world: &World) -> Vec<Result<(usize, usize), Unreferred>> {
    let ends = world.events.iter().filter_map(|(_, event)| match event {
        Event::Referred { event, .. } => Some(*event),
        _ => None,
    });
    ends.collect()
}

fn asked(world: &mut World, provider: usize) -> Result<(usize, usize), Unreferred> {
    let (before, provider) = (ends(world).len(), world.id(provider));
    world.command(0, Command::AskReferences(provider));
    assert!(world.run_until(Duration::from_secs(60), |world| ends(world).len() > before));
    ends(world).pop().unwrap()
}

fn report(world: &World, number: usize) -> Report {
    world.peer(0).report(account(number), world.now(0).wall)
}

#[test]
fn what_an_acquaintance_accepted_counts_and_stays_over_restarts_and_checkpoints() {
    let mut world = acquainted(&[]);
    buys(&mut world);
    assert_eq!(asked(&mut world, 3), Ok((1, 1)));
    let known = report(&world, 3);
    assert_eq!(known.references[0].vouch.client, account(1));
    assert!(known.references[0].vouch.compared);
    // Account 1 did twelve results, and vouches for one provider.
    assert_eq!(known.referred, Weight::ONE);
    assert_eq!(known.audited, 950);
    assert_eq!(report(&world, 2).results.in_a_row.count, 12);
    world.crash(0);
    world.boot(0);
    let seen = |report: &Report| {
        (
            report.references.clone(),
            report.audited,
            report.results.clone(),
        )
    };
    assert_eq!(seen(&report(&world, 3)), seen(&known));

    // And so it is from a checkpoint, and from one of that.
    let now = world.now(0);
    let (config, signer) = (world.nodes[0].config.clone(), world.nodes[0].signer.clone());
    let condense =
        |records: Vec<Record>| Peer::condense(now.wall, &config, &signer, records.into_iter());
    let fewer = condense(condense(world.records(0)));
    let lsn = world.peer(0).last_lsn();
    let records = fewer.into_iter().map(|record| (lsn, record));
    let peer = Peer::restore(now, config.clone(), signer.clone(), [1; 32], records);
    for number in 0..4 {
        let restored = peer.report(account(number), now.wall);
        assert_eq!(seen(&restored), seen(&report(&world, number)), "{number}");
    }
}

#[test]
fn a_stranger_that_begins_to_work_is_asked_once() {
    let mut world = acquainted(&[]);
    buys(&mut world);
    let asks = |world: &World| world.count_sent(|frame| matches!(frame, Frame::AskReferences));
    assert_eq!(
        asks(&world),
        0,
        "nothing that replicas decide depends on them"
    );
    for number in 3..6 {
        let mut order = order(number);
        order.verify.adaptive = true;
        world.submit(order);
        world.run_until_settled();
    }
    // Some audits were made elsewhere, by those who need no references.
    let worked = |by| {
        (world.executed.iter())
            .filter(|(node, _)| *node == by)
            .count()
    };
    assert!(worked(3) >= 5, "two for provider 1, three for us");
    let asked = world.sent.iter();
    let asked: Vec<usize> = asked
        .filter(|sent| matches!(sent.frame, Frame::AskReferences))
        .map(|sent| sent.to)
        .collect();
    assert_eq!(asked, [3]);
    assert_eq!(report(&world, 3).referred, Weight::ONE);
}

#[test]
fn what_is_lost_is_asked_for_again_and_silence_ends() {
    let mut world = acquainted(&[]);
    buys(&mut world);
    let mut lost = 0;
    world.link = Box::new(move |sent| match sent.frame {
        Frame::AskReferences | Frame::References(..) if lost < 3 => {
            lost += 1;
            Fate::Drop
        }
        _ => Fate::Twice,
    });
    assert_eq!(asked(&mut world, 3), Ok((1, 1)));
    // What came twice is no answer to the next question.
    world.pass(Duration::from_secs(1));
    world.link = Box::new(|sent| match sent.frame {
        Frame::References(..) => Fate::Drop,
        _ => Fate::Deliver,
    });
    let before = report(&world, 3);
    assert_eq!(asked(&mut world, 3), Err(Unreferred::Silent));
    assert_eq!(report(&world, 3).references, before.references);
    assert_eq!(asked(&mut world, 0), Err(Unreferred::Own));
}

#[test]
fn who_asks_too_often_is_not_answered() {
    let mut world = acquainted(&[]);
    buys(&mut world);
    for _ in 0..REFERENCES_PER_PEER {
        assert!(asked(&mut world, 3).is_ok());
    }
    let declined = asked(&mut world, 3).unwrap_err();
    assert!(matches!(declined, Unreferred::Declined(no) if no.reason == Reason::BUSY));
    assert_eq!(
        report(&world, 3).referred,
        Weight::ONE,
        "what is known stays"
    );
    world.pass(Duration::from_secs(3601));
    assert!(asked(&mut world, 3).is_ok());
    // Nor is anybody, where its operator says so.
    let mut silent = world.nodes[3].config.provider.clone().unwrap();
    silent.references_per_hour = 0;
    world.command(3, Command::Provide(Box::new(silent)));
    let declined = asked(&mut world, 3).unwrap_err();
    assert!(matches!(declined, Unreferred::Declined(no) if no.reason == Reason::NOT_ALLOWED));
    // One that sells nothing has nothing to show.
    world.say(3, 0, Frame::AskReferences);
    world.pass(Duration::from_secs(1));
    let none = |frame: &Frame| matches!(frame, Frame::References(shown, Some(no)) if shown.is_empty() && no.reason == Reason::OFFER_GONE);
    assert_eq!(world.count_sent(none), 1);
}

/// A reference as somebody might make it.
#[derive(Clone, Copy)]
struct Made {
    provider: usize,
    client: usize,
    /// Whose account the client's node says that it signs for.
    client_for: usize,
    verdict: Verdict,
    at: Wall,
    network: NetworkId,
    number: u8,
}

impl Made {
    fn new(world: &World, provider: usize, client: usize) -> Self {
        Self {
            provider,
            client,
            client_for: client,
            verdict: Verdict::Accepted,
            at: world.now(0).wall,
            network: network(),
            number: 0,
        }
    }

    fn sign(self) -> Reference {
        let for_ever = Wall::from_millis(u64::MAX);
        let signer = |node: usize| {
            let secret =
                *Hash::derive("suanli pair test keys", &[&[1], &node.to_le_bytes()]).as_bytes();
            Signer::new(&secret, self.network)
        };
        assert_eq!(signer(1).public(), node_signer(1).public());
        let receipt = signer(self.provider).sign(
            self.at,
            for_ever,
            Receipt {
                key: ReceiptKey {
                    agreement: AgreementId(Hash::of(&[self.number])),
                    unit: 0,
                    attempt: 1,
                    index: 0,
                    last: true,
                },
                outcome: Outcome::Completed,
                program: BlobId(Hash::of(b"program")),
                inputs: Hash::of(b"inputs"),
                outputs: List::default(),
                started: self.at,
                ended: self.at,
                usage: List::default(),
                amount: micros(1),
                verification: Verification::HASHES,
                extensions: Extensions::default(),
            },
        );
        let acceptance = signer(self.client).sign(
            self.at,
            for_ever,
            Acceptance {
                receipt: ReceiptId(receipt.hash()),
                key: receipt.body().key,
                verdict: self.verdict,
                verification: Verification::REPLICAS,
                extensions: Extensions::default(),
            },
        );
        Reference {
            receipt: receipt.raw(),
            provider: delegate(self.provider),
            acceptance: acceptance.raw(),
            client: delegate(self.client_for),
        }
    }
}

const SHOWER: usize = 4;

/// What the client makes of what provider 4, made by hand, shows it.
fn shown(world: &mut World, references: Vec<Reference>) -> Result<(usize, usize), Unreferred> {
    assert!(references.len() <= REFERENCES_MAX);
    let before = ends(world).len();
    world.nodes[SHOWER].inbox.clear();
    let provider = world.id(SHOWER);
    world.command(0, Command::AskReferences(provider));
    let is_asked = |world: &World| {
        let mut inbox = world.nodes[SHOWER].inbox.iter();
        inbox.any(|(_, message)| matches!(message, Message::AskReferences))
    };
    assert!(world.run_until(Duration::from_secs(5), is_asked));
    world.say(
        SHOWER,
        0,
        Frame::References(List::truncated(references), None),
    );
    assert!(world.run_until(Duration::from_secs(5), |world| ends(world).len() > before));
    ends(world).pop().unwrap()
}

fn shower() -> World {
    let mut world = acquainted(&[SHOWER]);
    puppet::Provider::new(&mut world, SHOWER);
    world
}

#[test]
fn a_ring_of_ones_own_accounts_weighs_nothing_and_takes_no_room() {
    let mut world = shower();
    let records = world.records(0).len();
    let ring = (100..100 + REFERENCES_MAX).map(|client| Made::new(&world, SHOWER, client).sign());
    let ring: Vec<_> = ring.collect();
    assert_eq!(shown(&mut world, ring), Ok((REFERENCES_MAX, 0)));
    let report = report(&world, SHOWER);
    assert_eq!((report.referred, report.audited), (Weight::ZERO, 1000));
    assert!(report.references.is_empty());
    world.pass(Duration::from_secs(1));
    let more = world.records(0).split_off(records);
    assert!(
        !more
            .iter()
            .any(|record| matches!(record, Record::Vouched(_)))
    );
    assert!(world.blamed.is_empty(), "to have new clients is no crime");
    // Nor do its own word, and the asker's own.
    let own = [SHOWER, 0].map(|client| Made::new(&world, SHOWER, client).sign());
    assert_eq!(shown(&mut world, own.to_vec()), Ok((2, 0)));
}

#[test]
fn one_that_is_known_counts_once_however_often_it_signs() {
    let mut world = shower();
    let many = (0..20).map(|number| Made {
        number,
        ..Made::new(&world, SHOWER, 1)
    });
    let mut many: Vec<_> = many.map(Made::sign).collect();
    many.extend(vec![Made::new(&world, SHOWER, 1).sign(); 12]);
    assert_eq!(shown(&mut world, many), Ok((32, 1)));
    assert_eq!(report(&world, SHOWER).referred, Weight::ONE);
    assert_eq!(report(&world, SHOWER).references.len(), 1);
    // Shown again, it is no more.
    let again = vec![Made::new(&world, SHOWER, 1).sign()];
    assert_eq!(shown(&mut world, again), Ok((1, 1)));
    assert_eq!(report(&world, SHOWER).referred, Weight::ONE);
    // And to show none takes it back.
    assert_eq!(shown(&mut world, vec![]), Ok((0, 0)));
    assert_eq!(report(&world, SHOWER).referred, Weight::ZERO);
}

#[test]
fn what_is_forged_is_named_and_counts_nothing() {
    let mut world = shower();
    let good = Made::new(&world, SHOWER, 1);
    let broken = {
        let mut bytes = good.sign();
        let raw: Vec<u8> = bytes.acceptance.0.to_vec();
        let mut raw = raw;
        *raw.last_mut().unwrap() ^= 1;
        bytes.acceptance = Raw(suanli_protocol::wire::Bytes::new(raw).unwrap());
        bytes
    };
    let spliced = Reference {
        receipt: Made { number: 9, ..good }.sign().receipt,
        ..good.sign()
    };
    let elsewhere = Made {
        network: NetworkId::of("another network"),
        ..good
    };
    // A fresh key with the delegation of one that we know, and its own.
    let borrowed = Made {
        client: 77,
        client_for: 1,
        ..good
    };
    let disputed = Made {
        verdict: Verdict::Disputed(Reason::WRONG_RESULT),
        ..good
    };
    let forged = [
        broken,
        spliced,
        elsewhere.sign(),
        borrowed.sign(),
        disputed.sign(),
    ];
    for (n, one) in forged.into_iter().enumerate() {
        let blamed = world.blamed.len();
        assert_eq!(shown(&mut world, vec![one]), Ok((0, 0)), "{n}");
        assert_eq!(world.blamed.len(), blamed + 1, "{n}");
        assert_eq!(report(&world, SHOWER).referred, Weight::ZERO, "{n}");
    }
}

#[test]
fn what_is_foreign_old_or_not_yet_signed_counts_nothing_and_is_nobodys_fault() {
    let mut world = shower();
    let now = world.now(0).wall;
    let good = Made::new(&world, SHOWER, 1);
    let foreign = Made {
        provider: 3,
        ..good
    };
    let early = Made {
        at: now.after(Duration::from_secs(3600)),
        ..good
    };
    assert_eq!(shown(&mut world, vec![foreign.sign()]), Ok((1, 0)));
    assert_eq!(
        report(&world, 3).referred,
        Weight::ZERO,
        "nor for whose it is"
    );
    assert_eq!(shown(&mut world, vec![early.sign()]), Ok((1, 0)));
    assert!(world.blamed.is_empty());
    // What was good is too old one day.
    let good = good.sign();
    assert_eq!(shown(&mut world, vec![good.clone()]), Ok((1, 1)));
    world.nodes[0].skew_ms = i64::try_from(REFERENCE_AGE_MAX.get()).unwrap() + 1000;
    world.pass(Duration::from_secs(1));
    puppet::Provider::new(&mut world, SHOWER);
    assert!(report(&world, SHOWER).referred < Weight::from_micros(16_000));
}

#[test]
fn what_nobody_asked_for_is_not_looked_at() {
    let mut world = shower();
    let good = Made::new(&world, SHOWER, 1).sign();
    let records = world.records(0).len();
    for _ in 0..200 {
        let flood = List::truncated(vec![good.clone(); REFERENCES_MAX]);
        world.say(SHOWER, 0, Frame::References(flood, None));
    }
    world.pass(Duration::from_secs(5));
    assert_eq!(report(&world, SHOWER).referred, Weight::ZERO);
    assert_eq!(world.records(0).len(), records);
    assert!(ends(&world).is_empty());
}
