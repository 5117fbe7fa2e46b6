//! Who owes whom: channels, credit, contradictions and backups.

use std::time::Duration;

use suanli_protocol::{
    ids::{ReceiptId, VoucherId},
    limits::{DISPUTES_MAX, PREPAID_CHANNELS_MAX},
    message::{Frame, LogLine, Message, Progress},
    peer::{Command, Declaration, Event, NotSettled, Peer, SettleOn},
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

/// The provider's operator declares a payment.
fn settle(world: &mut World, on: SettleOn, amount: u64, reference: &str) -> Result<(), NotSettled> {
    let declaration = Declaration {
        on,
        amount: micros(amount),
        reference: Text::new(reference).unwrap(),
    };
    let may = world.peer(1).may_settle(&declaration);
    world.command(1, Command::Settle(Box::new(declaration)));
    world.pass(Duration::from_millis(100));
    may
}

#[test]
fn a_settlement_gives_credit_back() {
    let (mut world, mut client) = with_puppet_client();
    while client.buy(&mut world, 1).is_ok() {}
    let channel = world.peer(1).channels()[0].channel;
    // The payee asks what the client knows, before it declares anything.
    let declared = settle(&mut world, SettleOn::Channel(channel), 10_000, "paid");
    assert_eq!(declared, Err(NotSettled::NotInStep));
    client.show_nothing(&mut world, channel);
    settle(&mut world, SettleOn::Channel(channel), 10_000, "paid").unwrap();
    assert!(client.buy(&mut world, 2).is_ok());
    world.crash(1);
    world.boot(1);
    assert_eq!(world.peer(1).channels()[0].settled.as_micros(), 10_000);
}

/// What both sides of the first channel say is paid, and how often something was.
fn settled(world: &World) -> [(u64, u128); 2] {
    [0, 1].map(|node| {
        let views = world.peer(node).channels();
        let view = views.first();
        view.map_or((0, 0), |view| (view.settlements, view.settled.as_micros()))
    })
}

fn first_channel(world: &World) -> SettleOn {
    SettleOn::Channel(world.peer(1).channels()[0].channel)
}

/// As an operator does who is told that the client's node is being asked.
fn settle_in_step(world: &mut World, amount: u64, reference: &str) {
    let on = first_channel(world);
    let again = settle(world, on, amount, reference);
    if again == Err(NotSettled::NotInStep) {
        settle(world, on, amount, reference).unwrap();
    } else {
        again.unwrap();
    }
}

#[test]
fn what_is_declared_paid_is_the_same_on_both_sides() {
    let mut world = World::new(1).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    settle_in_step(&mut world, 500, "transfer 1");
    // The same order again is no second payment.
    settle_in_step(&mut world, 500, "transfer 1");
    assert_eq!(settled(&world), [(1, 500); 2]);
    settle_in_step(&mut world, 4000, "transfer 2");
    assert_eq!(settled(&world), [(2, 4500); 2]);
    for node in [0, 1] {
        let view = &world.peer(node).channels()[0];
        assert_eq!(
            (view.outstanding().as_micros(), view.prepaid().as_micros()),
            (0, 2500)
        );
        world.crash(node);
        world.boot(node);
    }
    assert_eq!(settled(&world), [(2, 4500); 2]);
    let on = first_channel(&world);
    let nothing = settle(&mut world, on, 0, "transfer 3");
    assert_eq!(nothing, Err(NotSettled::Nothing));
    // Only the payee declares.
    let declaration = Declaration {
        on,
        amount: micros(1),
        reference: Text::new("mine").unwrap(),
    };
    let refused = world.peer(0).may_settle(&declaration);
    assert_eq!(refused, Err(NotSettled::UnknownChannel));
}

#[test]
fn a_lost_settlement_comes_again() {
    let mut world = World::new(1).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    let on = first_channel(&world);
    let _ = settle(&mut world, on, 500, "transfer 1");
    // Lost are the settlement and, three times, what asks whether it came.
    let mut left = 4;
    world.link = Box::new(move |sent| match sent.frame {
        Frame::Settlement(_) | Frame::Heads(_) if sent.from == 1 && left > 0 => {
            left -= 1;
            Fate::Drop
        }
        _ => Fate::Deliver,
    });
    settle(&mut world, on, 500, "transfer 1").unwrap();
    world.pass(Duration::from_secs(20));
    assert_eq!(settled(&world), [(1, 500); 2]);
    assert!(world.blamed.is_empty());
}

#[test]
fn a_restored_payee_declares_nothing_before_it_knows_what_it_declared() {
    let mut world = World::new(1).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    let backup = world.nodes[1].disk.clone();
    settle_in_step(&mut world, 500, "transfer 1");
    world.link = Box::new(|_| Fate::Drop);
    world.restore_backup(1, backup);
    let on = first_channel(&world);
    for _ in 0..3 {
        let declared = settle(&mut world, on, 700, "transfer 2");
        assert_eq!(declared, Err(NotSettled::NotInStep));
    }
    assert_eq!(settled(&world), [(1, 500), (0, 0)]);
    world.link = Box::new(|_| Fate::Deliver);
    world.connect(0, 1);
    world.pass(Duration::from_millis(200));
    settle_in_step(&mut world, 700, "transfer 2");
    assert_eq!(settled(&world), [(2, 1200); 2]);
    assert!(world.blamed.is_empty());
}

/// Also when its backup is older than the channel.
#[test]
fn a_restored_payer_finds_the_whole_account_at_the_payee() {
    let mut world = World::new(1).start(&[]);
    let backup = world.nodes[0].disk.clone();
    world.submit(order(1));
    world.run_until_settled();
    settle_in_step(&mut world, 500, "transfer 1");
    world.restore_backup(0, backup);
    world.connect(0, 1);
    world.pass(Duration::from_secs(1));
    assert_eq!(settled(&world), [(1, 500); 2]);
    assert_eq!(channel_of(world.peer(0)), (1, 2000));
    assert_eq!(channel_of(world.peer(0)), channel_of(world.peer(1)));
}

/// A client that has bought nothing yet pays first, and runs more than strangers may.
#[test]
fn a_prepayment_widens_what_a_new_client_may_run() {
    let (mut world, mut client) = with_puppet_client();
    let parties = client.parties();
    let on = SettleOn::Payer {
        node: parties.payer,
        account: parties.payer_account,
    };
    let early = settle(&mut world, on, 30_000, "in advance");
    assert_eq!(early, Err(NotSettled::NotInStep));
    assert!(world.peer(1).channels().is_empty());
    client.show_nothing(&mut world, parties.channel(network()));
    settle(&mut world, on, 30_000, "in advance").unwrap();
    let view = &world.peer(1).channels()[0];
    assert_eq!(view.prepaid().as_micros(), 30_000);
    assert_eq!(view.credit_left.unwrap().as_micros(), 50_000);
    let mut served = 0;
    while client.buy(&mut world, served + 1).is_ok() {
        served += 1;
    }
    // 15 for what it paid, and 5 on credit as any stranger.
    assert_eq!(served, 20);
}

/// Money that one stranger paid does not use up the budget of the others, and
/// a budget that is used up does not keep out who has paid.
#[test]
fn a_stranger_that_pays_is_served_when_the_budget_of_strangers_is_gone() {
    let mut world = World::new(1);
    let strangers: Vec<usize> = (0..60).map(|_| world.add(None)).collect();
    let mut world = world.start(&strangers);
    let mut clients: Vec<Client> = strangers.iter().map(|&n| Client::new(n, 1)).collect();
    let mut last = Reason::UNSPECIFIED;
    for client in &mut clients {
        if let Err(reason) = client.buy(&mut world, 1) {
            last = reason;
        }
    }
    assert_eq!(last, Reason::STRANGERS_EXHAUSTED);
    let client = clients.last_mut().unwrap();
    let parties = client.parties();
    let on = SettleOn::Payer {
        node: parties.payer,
        account: parties.payer_account,
    };
    let _ = settle(&mut world, on, 20_000, "in advance");
    client.show_nothing(&mut world, parties.channel(network()));
    settle(&mut world, on, 20_000, "in advance").unwrap();
    assert!(client.buy(&mut world, 2).is_ok());
    // One that owes pays: that is room for another.
    let (first, second) = clients.split_at_mut(1);
    assert!(second[50].buy(&mut world, 3).is_err());
    let channel = first[0].parties().channel(network());
    first[0].show_nothing(&mut world, channel);
    settle(&mut world, SettleOn::Channel(channel), 2000, "after").unwrap();
    assert!(second[50].buy(&mut world, 4).is_ok());
}

#[test]
fn settlements_that_take_something_back_are_blamed() {
    let mut world = World::new(0);
    let liar = world.add(None);
    let mut world = world.start(&[liar]);
    let mut provider = Provider::new(&mut world, liar);
    world.submit(order(1));
    provider.serve(&mut world, None);
    let parties = world.peer(0).channels()[0].parties;
    let signed = |provider: &Provider, sequence, total, reference| {
        provider.sign(Settlement {
            parties,
            sequence,
            settled: Total::from_micros(total),
            paid: micros(1),
            reference: Text::new(reference).unwrap(),
            extensions: suanli_protocol::envelope::Extensions::default(),
        })
    };
    let first = signed(&provider, 1, 500, "a");
    let second = signed(&provider, 2, 900, "b");
    // Also an older one on its way, and the same again.
    for settlement in [&first, &second, &first, &second] {
        provider.say(&mut world, Frame::Settlement(settlement.raw()));
        world.pass(Duration::from_millis(50));
    }
    assert!(world.blamed.is_empty(), "{:?}", world.blamed);
    let other = signed(&provider, 2, 901, "other");
    let less = signed(&provider, 3, 899, "less");
    for (n, wrong) in [other, less].iter().enumerate() {
        provider.say(&mut world, Frame::Settlement(wrong.raw()));
        world.pass(Duration::from_millis(50));
        assert_eq!(world.blamed.len(), n + 1);
    }
    let view = &world.peer(0).channels()[0];
    assert_eq!((view.settlements, view.settled.as_micros()), (2, 900));
}

/// Whoever calls itself a provider can say that we paid.
#[test]
fn payments_that_we_know_nothing_of_are_few() {
    let many = PREPAID_CHANNELS_MAX + 10;
    let mut world = World::new(0);
    let liars: Vec<usize> = (0..many).map(|_| world.add(None)).collect();
    let mut world = world.start(&liars);
    for liar in liars {
        let mut provider = Provider::new(&mut world, liar);
        let settlement = provider.prepaid();
        provider.say(&mut world, Frame::Settlement(settlement.raw()));
    }
    world.pass(Duration::from_millis(100));
    assert_eq!(world.peer(0).channels().len(), PREPAID_CHANNELS_MAX);
}

#[test]
fn a_payer_that_lost_unacknowledged_vouchers_signs_none_of_their_numbers_again() {
    // A copy of the disk from any moment of three jobs comes back after them, and what the
    // payee shows may come twice: the second time it is old.
    let backups = (0..700).step_by(20);
    for (backup_at_ms, heads) in backups.flat_map(|at| [(at, Fate::Deliver), (at, Fate::Twice)]) {
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
        world.link = Box::new(move |sent| match sent.frame {
            Frame::Heads(_) => heads,
            _ => Fate::Deliver,
        });
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
        settlement: None,
        reply: true,
    };
    for to in [0, 1] {
        for frame in [
            Frame::Cancel(agreement),
            Frame::Lost(agreement),
            Frame::Agreed(agreement),
            Frame::AgreeRefused(agreement, Reason::BUSY.into()),
            Frame::Release(agreement.into()),
            Frame::Resume(agreement, List::default(), List::default(), List::default()),
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
        paid: Amount::from_micros(1_000_000),
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
