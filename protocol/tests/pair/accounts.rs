//! Who owes whom: channels, credit, contradictions and backups.

use std::time::Duration;

use suanli_protocol::{
    ids::{ReceiptId, VoucherId},
    limits::DISPUTES_MAX,
    message::{Frame, LogLine, Message, Progress},
    peer::{Event, Peer},
    rank::Policy,
    receipt::{Outcome, Verdict},
    record::{JobEnd, Record},
    registry::Reason,
    units::{Amount, Meter, Millis, Total},
    voucher::{Equivocation, NO_ROOT, NO_VOUCHER, Settlement},
    wire::{List, Text},
};

use crate::{
    puppet::{Client, Lie, Provider},
    world::{Fate, World, micros, network, order},
};

/// A world with a provider, number 1, and a puppet client, number 2, which
/// the provider knows only as a stranger.
fn with_puppet_client() -> (World, Client) {
    let mut world = World::new(1);
    let number = world.add(None);
    (world.start(&[number]), Client::new(number, 1))
}

#[test]
fn abuse_59_two_vouchers_with_one_number_are_a_proof() {
    let (mut world, mut client) = with_puppet_client();
    let receipt = client.buy(&mut world, 1).unwrap();
    client.accept(&mut world, &receipt);
    let honest = client.voucher(&receipt, 1, NO_VOUCHER, 2000);
    let other = client.voucher(&receipt, 1, NO_VOUCHER, 2001);
    client.say(&mut world, Frame::Voucher(honest.raw()));
    client.say(&mut world, Frame::Voucher(other.raw()));
    world.pass(Duration::from_millis(100));
    assert!(world.peer(1).channels()[0].frozen);
    assert_eq!(world.peer(1).channels()[0].cumulative.as_micros(), 2000);
    // The proof is on disk and convinces anybody.
    let proof = world
        .records(1)
        .into_iter()
        .find_map(|record| match record {
            Record::Frozen { first, second } => Equivocation::new(first, second),
            _ => None,
        });
    let proof = proof.unwrap();
    let (first, second) = proof.vouchers();
    assert_eq!((first.hash(), second.hash()), (honest.hash(), other.hash()));
    assert_eq!(first.signer(), world.id(client.number));
    // The account gets nothing more, also after a restart.
    for _ in 0..2 {
        let no = client.buy(&mut world, 2).unwrap_err();
        assert_eq!(no, Reason::CHANNEL_FROZEN);
        world.crash(1);
        world.boot(1);
    }
    assert!(Equivocation::new(honest.clone(), honest).is_none());
}

#[test]
fn abuse_60_replayed_and_lower_totals_are_ignored() {
    let (mut world, mut client) = with_puppet_client();
    let first = client.buy(&mut world, 1).unwrap();
    let one = client.voucher(&first, 1, NO_VOUCHER, 2000);
    client.say(&mut world, Frame::Voucher(one.raw()));
    let second = client.buy(&mut world, 2).unwrap();
    let previous = VoucherId(one.hash());
    let lower = client.next_voucher(&one, &second, 1500);
    let same = client.next_voucher(&one, &second, 2000);
    let elsewhere = client.voucher(&second, 2, NO_VOUCHER, 4000);
    let skipping = client.voucher(&second, 7, previous, 4000);
    for wrong in [&one, &lower, &same, &elsewhere, &skipping] {
        client.say(&mut world, Frame::Voucher(wrong.raw()));
        world.pass(Duration::from_millis(50));
        let view = &world.peer(1).channels()[0];
        assert_eq!((view.sequence, view.cumulative.as_micros()), (1, 2000));
        assert!(!view.frozen);
    }
    let right = client.next_voucher(&one, &second, 4000);
    client.say(&mut world, Frame::Voucher(right.raw()));
    world.pass(Duration::from_millis(50));
    let view = &world.peer(1).channels()[0];
    assert_eq!((view.sequence, view.cumulative.as_micros()), (2, 4000));
    assert_eq!(view.pending, Total::ZERO);
}

#[test]
fn abuse_61_a_total_at_the_edge_of_its_type_harms_nobody_else() {
    let mut world = World::new(1);
    let (first, second) = (world.add(None), world.add(None));
    let mut world = world.start(&[first, second]);
    let mut liar = Client::new(first, 1);
    let receipt = liar.buy(&mut world, 1).unwrap();
    let most = liar.voucher_of(&receipt, 1, NO_VOUCHER, Total::from_micros(u128::MAX));
    liar.say(&mut world, Frame::Voucher(most.raw()));
    assert!(liar.buy(&mut world, 2).is_err());
    let mut honest = Client::new(second, 1);
    assert!(honest.buy(&mut world, 3).is_ok());
}

#[test]
fn abuse_74_a_thousand_strangers_cost_one_budget() {
    let mut world = World::new(1);
    let strangers: Vec<usize> = (0..1000).map(|_| world.add(None)).collect();
    let mut world = world.start(&strangers);
    let mut served = 0;
    for number in strangers {
        let mut client = Client::new(number, 1);
        served += u32::from(client.buy(&mut world, 1).is_ok());
    }
    let lent: u128 = world
        .peer(1)
        .channels()
        .iter()
        .map(|view| view.pending.as_micros())
        .sum();
    assert!(served > 10, "{served} were served");
    assert!(
        lent <= 100_000,
        "{lent} is more than the budget for strangers"
    );
    // A client that the operator knows is still served.
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
}

#[test]
fn a_stranger_gets_no_more_than_its_credit() {
    let (mut world, mut client) = with_puppet_client();
    let mut served = 0;
    let no = loop {
        match client.buy(&mut world, served + 1) {
            Ok(_) => served += 1,
            Err(no) => break no,
        }
    };
    assert_eq!(no, Reason::CREDIT_EXHAUSTED);
    // 20,000 of credit, 11,000 reserved for each, 2,000 used by each.
    assert_eq!(served, 5);
}

#[test]
fn a_settlement_gives_credit_back() {
    let (mut world, mut client) = with_puppet_client();
    while client.buy(&mut world, 1).is_ok() {}
    let channel = world.peer(1).channels()[0].channel;
    let settle = suanli_protocol::peer::Command::Settle {
        channel,
        amount: micros(10_000),
        reference: Text::new("paid").unwrap(),
    };
    world.command(1, settle);
    assert!(client.buy(&mut world, 2).is_ok());
    world.crash(1);
    world.boot(1);
    assert_eq!(world.peer(1).channels()[0].settled.as_micros(), 10_000);
}

#[test]
fn a_payer_that_lost_unacknowledged_vouchers_signs_none_of_their_numbers_again() {
    // A copy of the disk from any moment of three jobs comes back after them.
    for backup_at_ms in (0..700).step_by(20) {
        let mut world = World::new(1).start(&[]);
        let mut backup = None;
        for number in 1..=3 {
            world.submit(order(number));
            for _ in 0..12 {
                world.pass(Duration::from_millis(20));
                let passed = world.now(0).mono.as_micros() / 1000 - 100;
                if backup.is_none() && passed >= backup_at_ms {
                    backup = Some(world.nodes[0].disk.clone());
                }
            }
        }
        world.run_until_settled();
        world.restore_backup(0, backup.unwrap());
        world.submit(order(9));
        world.run_until_settled();
        world.pass(Duration::from_secs(1));
        assert_eq!(world.job(9).end, Some(JobEnd::Done), "{backup_at_ms}");
        let (ours, theirs) = (channel_of(world.peer(0)), channel_of(world.peer(1)));
        assert_eq!(ours, theirs, "backup of {backup_at_ms} ms");
        // Four jobs were done, and each is paid once: of what the backup had
        // forgotten half-way, the receipts come again.
        let forgotten = world.peer(0).jobs().len() < 4;
        assert_eq!(ours, (4, 8000), "backup of {backup_at_ms} ms, {forgotten}");
    }
}

fn channel_of(peer: &Peer) -> (u64, u128) {
    let view = &peer.channels()[0];
    (view.sequence, view.cumulative.as_micros())
}

#[test]
fn abuse_57_a_restored_payer_signs_nothing_until_the_heads_agree() {
    let mut world = World::new(1).start(&[]);
    let backup = world.nodes[0].disk.clone();
    world.submit(order(1));
    world.run_until_settled();
    world.restore_backup(0, backup);
    world.link = Box::new(|sent| match sent.frame {
        Frame::Heads(_) => Fate::Drop,
        _ => Fate::Deliver,
    });
    world.submit(order(2));
    let before = world.count_sent(|frame| matches!(frame, Frame::Voucher(_)));
    world.pass(Duration::from_secs(10));
    assert_eq!(world.job(2).end, Some(JobEnd::Done));
    let after = world.count_sent(|frame| matches!(frame, Frame::Voucher(_)));
    assert_eq!(before, after, "it paid before it knew its head");
    world.link = Box::new(|_| Fate::Deliver);
    world.run_until_settled();
    assert_eq!(channel_of(world.peer(0)), (2, 4000));
    assert_eq!(channel_of(world.peer(1)), (2, 4000));
}

#[test]
fn a_restored_payee_takes_its_own_acknowledgements_back() {
    for lost_acks in [0, 1] {
        let mut world = World::new(1).start(&[]);
        let backup = world.nodes[1].disk.clone();
        world.submit(order(1));
        world.run_until_settled();
        let mut left = lost_acks;
        world.link = Box::new(move |sent| match sent.frame {
            Frame::VoucherAck(_) | Frame::Heads(_) if left > 0 && sent.from == 1 => Fate::Drop,
            Frame::Cancel(_) => {
                left = 0;
                Fate::Deliver
            }
            _ => Fate::Deliver,
        });
        world.submit(order(2));
        world.pass(Duration::from_millis(600));
        world.restore_backup(1, backup);
        world.link = Box::new(|_| Fate::Deliver);
        world.run_until_settled();
        world.submit(order(3));
        world.run_until_settled();
        assert_eq!(channel_of(world.peer(0)), (3, 6000));
        assert_eq!(
            channel_of(world.peer(1)),
            (3, 6000),
            "{lost_acks} acks lost"
        );
    }
}

/// A backup in which several receipts are still owed comes back after all of
/// them were paid: nothing is pending twice.
#[test]
fn a_payee_that_lost_several_vouchers_knows_what_is_pending() {
    for (jobs, more) in [(3, 0), (3, 2), (3, 70)] {
        let mut world = World::new(1).start(&[]);
        world.link = Box::new(|sent| match sent.frame {
            Frame::Voucher(_) => Fate::Drop,
            _ => Fate::Deliver,
        });
        for number in 1..=jobs {
            world.submit(order(number));
            world.run_until(Duration::from_secs(5), |world| {
                world.job(number).end.is_some()
            });
        }
        world.pass(Duration::from_millis(100));
        let backup = world.nodes[1].disk.clone();
        assert_eq!(world.peer(1).channels()[0].pending.as_micros(), 6000);
        world.link = Box::new(|_| Fate::Deliver);
        for number in 1..=more {
            world.submit(order(100 + number));
            world.run_until_settled();
        }
        world.run_until_settled();
        world.restore_backup(1, backup);
        world.submit(order(99));
        world.run_until_settled();
        let all = u64::from(jobs + more + 1);
        let context = format!("{jobs} and {more}");
        assert_eq!(
            channel_of(world.peer(0)),
            (all, u128::from(2000 * all)),
            "{context}"
        );
        assert_eq!(
            channel_of(world.peer(1)),
            channel_of(world.peer(0)),
            "{context}"
        );
        let pending = world.peer(1).channels()[0].pending;
        assert_eq!(pending, Total::ZERO, "{context}");
        world.crash(1);
        world.boot(1);
        assert_eq!(
            world.peer(1).channels()[0].pending,
            Total::ZERO,
            "{context}"
        );
    }
}

#[test]
fn a_disputed_receipt_does_not_block_the_channel() {
    for lie in [
        Lie::Amount,
        Lie::Program,
        Lie::Unit,
        Lie::Attempt,
        Lie::Usage,
        Lie::Meter,
        Lie::Jobs,
    ] {
        let mut world = World::new(0);
        let liar = world.add(None);
        let mut world = world.start(&[liar]);
        let mut provider = Provider::new(&mut world, liar);
        world.submit(order(1));
        let verdict = provider.serve(&mut world, Some(lie));
        assert_eq!(verdict, Verdict::Disputed(lie.reason()), "{lie:?}");
        // After a while it is asked again, and paid for honest work.
        let verdict = provider.serve(&mut world, None);
        assert_eq!(verdict, Verdict::Accepted, "after {lie:?}");
        world.pass(Duration::from_secs(3));
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
        assert_eq!(world.job(1).spent, micros(2000));
        let vouchers = provider.vouchers(&world);
        assert_eq!(vouchers.last().unwrap().body().cumulative.as_micros(), 2000);
    }
}

#[test]
fn receipts_without_end_are_not_all_kept() {
    let mut world = World::new(0);
    let liar = world.add(None);
    let mut world = world.start(&[liar]);
    let mut provider = Provider::new(&mut world, liar);
    world.submit(order(1));
    provider.serve(&mut world, Some(Lie::Amount));
    for n in 0..u64::try_from(DISPUTES_MAX).unwrap() + 100 {
        let receipt = provider.receipt(Some(Lie::Amount), Outcome::Completed, n);
        provider.say(&mut world, Frame::Receipt(receipt.raw(), List::default()));
    }
    world.pass(Duration::from_millis(100));
    let judged = |record: &Record| matches!(record, Record::Judged { .. });
    let kept = world
        .records(0)
        .iter()
        .filter(|record| judged(record))
        .count();
    assert!(kept <= DISPUTES_MAX, "{kept}");
    assert!(!world.blamed.is_empty());
}

#[test]
fn what_a_third_party_says_of_others_changes_nothing() {
    let mut world = World::new(1);
    let third = world.add(None);
    let mut world = world.start(&[third]);
    world.submit(order(1));
    let agreed = world.run_until(Duration::from_secs(1), |world| !world.executed.is_empty());
    assert!(agreed);
    let agreement = world.job(1).agreement.unwrap();
    let heads = suanli_protocol::message::Heads {
        channel: world.peer(0).channels()[0].channel,
        voucher: None,
        ack: None,
        reply: true,
    };
    for to in [0, 1] {
        for frame in [
            Frame::Cancel(agreement),
            Frame::Lost(agreement),
            Frame::Agreed(agreement),
            Frame::AgreeRefused(agreement, Reason::BUSY.into()),
            Frame::Release(agreement.into()),
            Frame::Resume(agreement, List::default(), List::default()),
            Frame::Heads(heads.clone()),
        ] {
            world.say(third, to, frame);
        }
    }
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.executed.len(), 1);
    world.assert_conserved();
}

#[test]
fn a_settlement_by_somebody_else_is_refused() {
    let (mut world, mut client) = with_puppet_client();
    client.buy(&mut world, 1).unwrap();
    let parties = world.peer(1).channels()[0].parties;
    let forged = client.sign(Settlement {
        parties,
        sequence: 1,
        settled: Total::from_micros(1_000_000),
        reference: Text::new("x").unwrap(),
        extensions: suanli_protocol::envelope::Extensions::default(),
    });
    client.say(&mut world, Frame::Settlement(forged.raw()));
    world.pass(Duration::from_millis(50));
    assert_eq!(world.peer(1).channels()[0].settled, Total::ZERO);
    assert!(!world.blamed.is_empty());
}

/// Both sides hold the same bytes of what they signed with each other. `BUNDLE_OUT` is
/// the file that these are written to, for tests that read such a file.
#[test]
fn both_sides_keep_the_same_bytes() {
    let mut world = World::new(1).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    // The last acknowledgement goes to disk.
    world.pass(Duration::from_millis(100));
    let receipt = world.job(1).receipts[0];
    let bundle = |node: usize| {
        let records = world.records(node);
        Record::bundle(crate::world::NETWORK, receipt, records.iter())
            .unwrap()
            .encode()
    };
    assert_eq!(bundle(0), bundle(1));
    if let Some(file) = std::env::var_os("BUNDLE_OUT") {
        std::fs::write(file, bundle(0)).unwrap();
    }
    let settled = |(_, event): &(usize, Event)| matches!(event, Event::Settled { receipts } if receipts.contains(&receipt));
    assert!(world.events.iter().any(settled));
}

/// Three vouchers are on their way back when the connection breaks.
#[test]
fn both_sides_keep_the_same_bytes_when_acknowledgements_are_lost() {
    for restarts in [false, true] {
        let mut world = World::new(1).start(&[]);
        world.link = Box::new(|sent| match sent.frame {
            Frame::VoucherAck(_) => Fate::Drop,
            Frame::Heads(ref heads) if heads.ack.is_some() => Fate::Drop,
            _ => Fate::Deliver,
        });
        let mut receipts = Vec::new();
        for number in 1..=3 {
            world.submit(order(number));
            world.run_until(Duration::from_secs(5), |world| {
                world.job(number).end.is_some()
            });
            receipts.extend(world.job(number).receipts.clone());
        }
        world.pass(Duration::from_millis(100));
        assert_eq!(world.peer(0).channels()[0].acknowledged, 0);
        assert_eq!(world.peer(1).channels()[0].sequence, 3);
        world.link = Box::new(|_| Fate::Deliver);
        if restarts {
            world.crash(0);
            world.boot(0);
        } else {
            world.connect(0, 1);
        }
        world.run_until_settled();
        world.pass(Duration::from_secs(3));
        for receipt in receipts {
            let [ours, theirs] = [0, 1].map(|node| {
                let records = world.records(node);
                Record::bundle(crate::world::NETWORK, receipt, records.iter())
                    .unwrap()
                    .encode()
            });
            assert!(ours == theirs, "the bundles differ; restarts: {restarts}");
        }
    }
}

#[test]
fn a_puppets_messages_verify_like_anybodys() {
    let (mut world, mut client) = with_puppet_client();
    let receipt = client.buy(&mut world, 1).unwrap();
    assert_eq!(receipt.body().amount, Amount::from_micros(2000));
    assert_eq!(receipt.body().usage[1].meter, Meter::GPU_MS);
    assert_eq!(receipt.header().network, network());
    let _ = (ReceiptId(receipt.hash()), NO_ROOT);
    let quoted = |(_, message): &(usize, Message)| matches!(message, Message::Quoted(_));
    assert!(world.nodes[client.number].inbox.iter().any(quoted));
}

/// Numbers at the end of their types, wherever a provider may say one.
#[test]
fn abuse_61_numbers_at_the_edge_from_a_provider_are_borne() {
    let mut world = World::new(0);
    let liar = world.add(None);
    let mut world = world.start(&[liar]);
    let mut provider = Provider::new(&mut world, liar);
    provider.duration = Millis::new(u64::MAX);
    let mut balanced = order(1);
    balanced.policy = Policy::Balanced;
    balanced.budget = Amount::MAX;
    world.submit(balanced);
    provider.serve(&mut world, Some(Lie::Amount));
    world.submit(order(2));
    provider.serve(&mut world, Some(Lie::Program));
    for number in [u64::MAX, 0, u64::MAX] {
        let agreement = provider.agreement();
        let (unit, at) = (0, world.now(0).wall);
        let line = Text::new("x").unwrap();
        let log = LogLine {
            agreement,
            unit,
            number,
            at,
            line,
        };
        provider.say(&mut world, Frame::Log(log));
        let progress = Progress {
            agreement,
            unit,
            number,
            done: u64::MAX,
            total: u64::MAX,
        };
        provider.say(&mut world, Frame::Progress(progress));
    }
    world.run_until_settled();
}
