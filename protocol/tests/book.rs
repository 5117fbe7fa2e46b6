//! The offer book under flood, replay and skewed clocks.

#![expect(clippy::unwrap_used, reason = "what a harness can't do fails the test")]

use std::time::Duration;

use suanli_protocol::{
    book::{Book, Inserted},
    delegation::{Delegation, Revocation},
    envelope::{Extensions, Signer, Verified},
    ids::{Hash, PeerId},
    limits::{
        BOOK_OFFERS_MAX, BOOK_OFFERS_PER_ACCOUNT, OFFER_TTL_MAX, OFFERS_PER_PAGE, PULL_IDLE_MAX,
        PULL_KNOWN_MAX, SKEW_MAX,
    },
    message::{Frame, Gossip, Pull, Verdict},
    offer::{Offer, Withdrawal},
    peer::Input,
    units::Wall,
    wire::List,
};

#[expect(dead_code, reason = "only the samples of the harness are used here")]
#[path = "pair/world.rs"]
mod world;

use world::{Fate, World, network, offer};

const NOW: Wall = Wall::from_millis(1_800_000_000_000);
const TTL: Duration = Duration::from_secs(300);

fn signer(kind: &'static str, number: usize) -> Signer {
    let secret = Hash::derive(
        "suanli book test keys",
        &[kind.as_bytes(), &number.to_le_bytes()],
    );
    Signer::new(secret.as_bytes(), network())
}

/// An offer of a node for an account, as it comes from the network.
fn signed(node: usize, account: usize, sequence: u64, issued: Wall) -> Verified<Offer> {
    match Gossip::verify(made(node, account, sequence, issued).bytes(), network()) {
        Ok(Gossip::Offer(offer)) => offer,
        other => panic!("{other:?}"),
    }
}

fn made(node: usize, account: usize, sequence: u64, issued: Wall) -> Verified<Offer> {
    let (node, account) = (signer("node", node), signer("account", account));
    let delegation = Delegation {
        node: node.public().peer(),
        provides: true,
        consumes: true,
        extensions: Extensions::default(),
    };
    let mut body = offer(1);
    body.account = account.public().account();
    body.delegation = account
        .sign(
            Wall::from_millis(0),
            Wall::from_millis(u64::MAX),
            delegation,
        )
        .raw();
    body.sequence = sequence;
    node.sign(issued, issued.after(TTL), body)
}

fn withdrawal(node: usize, sequence: u64) -> Verified<Withdrawal> {
    let body = Withdrawal {
        sequence,
        extensions: Extensions::default(),
    };
    signer("node", node).sign(NOW, NOW.after(TTL), body)
}

fn revocation(node: usize, account: usize, since: Wall) -> Verified<Revocation> {
    let body = Revocation {
        node: signer("node", node).public().peer(),
        since,
        extensions: Extensions::default(),
    };
    signer("account", account).sign(NOW, NOW.after(TTL), body)
}

#[test]
fn a_higher_sequence_replaces_a_lower_one() {
    let mut book = Book::default();
    let (first, second) = (signed(1, 1, 5, NOW), signed(1, 1, 6, NOW));
    assert_eq!(book.insert(NOW, first.clone()), Inserted::New);
    assert_eq!(book.insert(NOW, first.clone()), Inserted::Known);
    assert_eq!(book.insert(NOW, second.clone()), Inserted::Replaced);
    assert_eq!(book.insert(NOW, first.clone()), Inserted::Outdated);
    assert_eq!(book.len(), 1);
    assert_eq!(book.of(second.signer()), Some(&second));
    assert_eq!(
        book.named(suanli_protocol::ids::OfferId(first.hash())),
        None
    );
}

#[test]
fn abuse_13_replayed_and_expired_offers_are_ignored_and_nobody_is_blamed() {
    let mut book = Book::default();
    let old = signed(1, 1, 5, NOW);
    let late = NOW.after(TTL);
    assert_eq!(book.insert(late, old.clone()), Inserted::Expired);
    assert_eq!(Inserted::Expired.verdict(), Verdict::Ignore);
    book.insert(NOW, signed(1, 1, 6, NOW));
    assert_eq!(book.insert(NOW, old).verdict(), Verdict::Ignore);
    book.expire(late);
    assert!(book.is_empty());
}

#[test]
fn abuse_14_early_offers_never_get_in() {
    let mut book = Book::default();
    let early = NOW.after(SKEW_MAX + Duration::from_millis(1));
    let offer = signed(1, 1, 5, early);
    assert_eq!(book.insert(NOW, offer.clone()), Inserted::Early);
    assert_eq!(Inserted::Early.verdict(), Verdict::Ignore);
    assert!(book.is_empty());
    let as_skewed_as_allowed = signed(1, 1, 5, NOW.after(SKEW_MAX));
    assert_eq!(book.insert(NOW, as_skewed_as_allowed), Inserted::New);
}

#[test]
fn an_offer_that_would_live_too_long_does_not_verify() {
    let node = signer("node", 1);
    let body = signed(1, 1, 5, NOW).body().clone();
    let expires = NOW.after(OFFER_TTL_MAX + Duration::from_millis(1));
    let offer = node.sign(NOW, expires, body);
    assert!(Gossip::verify(offer.bytes(), network()).is_err());
}

#[test]
fn a_withdrawal_ends_an_offer_and_keeps_it_out() {
    let mut book = Book::default();
    book.insert(NOW, signed(1, 1, 5, NOW));
    book.insert(NOW, signed(2, 2, 5, NOW));
    assert_eq!(book.withdraw(NOW, &withdrawal(1, 5)), Verdict::Accept);
    assert_eq!(book.withdraw(NOW, &withdrawal(1, 5)), Verdict::Ignore);
    assert_eq!(book.len(), 1);
    assert_eq!(book.insert(NOW, signed(1, 1, 5, NOW)), Inserted::Outdated);
    assert_eq!(book.insert(NOW, signed(1, 1, 6, NOW)), Inserted::New);
    // An old withdrawal does not touch a newer offer.
    assert_eq!(book.withdraw(NOW, &withdrawal(2, 4)), Verdict::Accept);
    assert_eq!(book.len(), 2);
    let late = NOW.after(TTL);
    assert_eq!(book.withdraw(late, &withdrawal(2, 9)), Verdict::Ignore);
}

#[test]
fn abuse_63_a_revoked_node_is_out_from_then_on() {
    let mut book = Book::default();
    let since = NOW.after(Duration::from_secs(10));
    let (before, after) = (signed(1, 1, 5, NOW), signed(1, 1, 6, since));
    assert_eq!(book.revoke(&revocation(1, 1, since)), Verdict::Accept);
    assert_eq!(book.insert(since, before), Inserted::New);
    assert_eq!(book.insert(since, after.clone()), Inserted::Revoked);
    let (account, node) = (after.body().account, after.signer());
    assert!(book.is_revoked(account, node, since));
    assert!(!book.is_revoked(account, node, NOW));
    // An earlier revocation takes what was signed before as well.
    assert_eq!(book.revoke(&revocation(1, 1, NOW)), Verdict::Accept);
    assert!(book.is_empty());
    assert_eq!(book.revoke(&revocation(1, 1, since)), Verdict::Ignore);
    // Somebody else's word counts for nothing.
    book.revoke(&revocation(2, 9, NOW));
    assert_eq!(book.insert(NOW, signed(2, 2, 1, NOW)), Inserted::New);
}

#[test]
fn a_flood_of_revocations_leaves_room_for_those_that_matter() {
    let mut book = Book::default();
    book.insert(NOW, signed(1, 1, 5, NOW));
    for account in 1000..1000 + BOOK_OFFERS_MAX {
        book.revoke(&revocation(account, account, NOW));
    }
    assert_eq!(book.revoke(&revocation(7, 7, NOW)), Verdict::Ignore);
    assert_eq!(book.revoke(&revocation(1, 1, NOW)), Verdict::Accept);
    assert_eq!(book.insert(NOW, signed(1, 1, 6, NOW)), Inserted::Revoked);
}

#[test]
fn one_account_gets_its_share_only() {
    let mut book = Book::default();
    for node in 0..BOOK_OFFERS_PER_ACCOUNT + 5 {
        let inserted = book.insert(NOW, signed(node, 1, 1, NOW));
        let fits = node < BOOK_OFFERS_PER_ACCOUNT;
        assert_eq!(inserted == Inserted::New, fits, "node {node}: {inserted:?}");
    }
    // A full account can still renew, and others still get in.
    assert_eq!(book.insert(NOW, signed(0, 1, 2, NOW)), Inserted::Replaced);
    assert_eq!(book.insert(NOW, signed(9999, 2, 1, NOW)), Inserted::New);
}

#[test]
fn abuse_12_a_flood_of_identities_displaces_nobody() {
    let mut book = Book::default();
    let honest: Vec<usize> = (100_000..100_020).collect();
    for &node in &honest {
        book.insert(NOW, signed(node, node, 1, NOW));
    }
    for node in 0..BOOK_OFFERS_MAX + 100 {
        book.insert(NOW, made(node, node, 1, NOW));
    }
    assert_eq!(book.len(), BOOK_OFFERS_MAX);
    for &node in &honest {
        assert!(book.of(signer("node", node).public().peer()).is_some());
        assert_eq!(
            book.insert(NOW, signed(node, node, 2, NOW)),
            Inserted::Replaced
        );
    }
    // Whom we have dealt with gets in even now, and stays in.
    let friend = signed(200_000, 200_000, 1, NOW);
    assert_eq!(book.insert(NOW, friend.clone()), Inserted::Full);
    book.deal_with(friend.body().account);
    assert_eq!(book.insert(NOW, friend.clone()), Inserted::New);
    assert_eq!(book.len(), BOOK_OFFERS_MAX);
    assert_eq!(
        book.insert(NOW, signed(300_000, 300_000, 1, NOW)),
        Inserted::Full
    );
    assert!(book.of(friend.signer()).is_some());
    // What has expired makes room.
    let late = NOW.after(TTL);
    assert_eq!(
        book.insert(late, signed(300_000, 300_000, 1, late)),
        Inserted::New
    );
    assert_eq!(book.len(), 1);
}

#[test]
fn books_are_compared_by_names_and_ages() {
    let mut book = Book::default();
    for node in 0..4 {
        book.insert(NOW, signed(node, node, 5, NOW));
    }
    let whole = book.pull(PeerId::from_bytes([0; 32]), None);
    assert_eq!((whole.known.len(), whole.to), (4, None));
    let (first, third) = (whole.known[0].peer, whole.known[2].peer);
    let two = book.pull(first, Some(third));
    assert_eq!((two.known.len(), two.to), (2, Some(third)));
    assert_eq!(book.lacking(&whole).count(), 0);
    let mut known = whole.known.to_vec();
    let second = known[1].peer;
    known.remove(0);
    known[0].sequence = 4;
    known[1].sequence = 6;
    let mut pull = Pull {
        known: List::truncated(known),
        ..whole
    };
    assert_eq!(book.lacking(&pull).count(), 2);
    pull.known = List::default();
    assert_eq!(book.lacking(&pull).count(), 4);
    (pull.from, pull.to) = (second, None);
    assert_eq!(book.lacking(&pull).count(), 3);
    pull.to = Some(second);
    assert_eq!(book.lacking(&pull).count(), 0);
}

/// Ten thousand offers, of which each side has the other half.
#[test]
fn large_books_that_differ_converge_also_with_loss() {
    const EACH: usize = 4900;
    for one_lost_in in [0, 10] {
        let mut world = World::new(1);
        world.nodes[1].config.provider = None;
        let mut world = world.start(&[]);
        let now = world.now(0).wall;
        for node in 0..2 * EACH {
            let gossip = Box::new(Gossip::Offer(made(node, node / 200, 1, now)));
            world.feed(node % 2, Input::Gossip { token: 0, gossip });
        }
        world.sent.clear();
        let mut count = 0;
        world.link = Box::new(move |_| {
            count += 1;
            match one_lost_in {
                0 => Fate::Deliver,
                n if count % n == 3 => Fate::Drop,
                _ => Fate::Deliver,
            }
        });
        world.connect(0, 1);
        let whole = |world: &World| (0..2).all(|n| world.peer(n).book().len() == 2 * EACH);
        assert!(
            world.run_until(Duration::from_secs(180), whole),
            "{} and {} offers, one of {one_lost_in} lost",
            world.peer(0).book().len(),
            world.peer(1).book().len()
        );
        let pulls = world.count_sent(|frame| matches!(frame, Frame::Pull(_)));
        let pages = EACH.div_ceil(OFFERS_PER_PAGE) + 2 * EACH.div_ceil(PULL_KNOWN_MAX) + 2;
        assert!(
            pulls <= 2 * pages * 13 / 10,
            "{pulls} pulls of {pages} pages"
        );
    }
}

/// A peer that only wants to be asked is not asked for ever.
#[test]
fn pages_without_news_come_to_an_end() {
    let mut world = World::new(0);
    let number = world.add(None);
    let mut world = world.start(&[number]);
    let peer = world.id(number);
    let connected = Input::Connected { peer, local: true };
    world.feed(0, connected);
    for n in 1..=200 {
        let next = Some(PeerId::from_bytes([n; 32]));
        world.say(number, 0, Frame::Offers(List::default(), next));
    }
    world.pass(Duration::from_millis(100));
    let pulls = world.count_sent(|frame| matches!(frame, Frame::Pull(_)));
    let most = usize::try_from(PULL_IDLE_MAX).unwrap() + 1;
    assert_eq!(pulls, most);
}

#[test]
fn whom_a_job_was_done_with_survives_a_flood_also_after_a_restart() {
    let mut world = World::new(1).start(&[]);
    world.submit(world::order(1));
    world.run_until_settled();
    let provider = world.id(1);
    let book = world.peer(0).book().clone();
    let offer = book.of(provider).unwrap().clone();
    let now = world.now(0).wall;
    let flood: Vec<_> = (0..=BOOK_OFFERS_MAX)
        .map(|node| made(node, node, 1, now))
        .collect();
    for restarted in [false, true] {
        if restarted {
            world.crash(0);
            world.crash(1);
            world.boot(0);
        }
        let mut book = world.peer(0).book().clone();
        for offer in &flood {
            book.insert(now, offer.clone());
        }
        assert_eq!(book.len(), BOOK_OFFERS_MAX);
        let inserted = book.insert(now, offer.clone());
        let is_in = matches!(inserted, Inserted::New | Inserted::Known);
        assert!(is_in, "restarted {restarted}: {inserted:?}");
    }
}
