//! Results that stay where they were made, and jobs elsewhere that read them.

use std::time::Duration;

use suanli_protocol::{
    deal::{BlobRef, UnitRange, Work},
    envelope::{Extensions, Signer, Verified},
    grant::Grant,
    ids::{AgreementId, BlobId},
    limits::INLINE_BYTES_MAX,
    message::Frame,
    peer::Command,
    record::{JobEnd, JobOrder, Record, Verify},
    registry::Reason,
    wire::List,
};

use crate::world::{Fate, LARGE_UNIT, World, blob, name, network, node_signer, order};

/// What that unit writes.
fn result() -> BlobRef {
    let mut bytes = format!("result of {LARGE_UNIT}").into_bytes();
    bytes.resize(INLINE_BYTES_MAX + 1, 0);
    blob(&bytes)
}

/// The unit with large results, of an array at one of these; its output stays there.
fn makes(world: &World, number: u8, providers: &[usize]) -> JobOrder {
    let mut order = order(number);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange {
            first: LARGE_UNIT,
            count: 1,
        }]),
        inputs_each: 0,
    };
    order.staying = List::truncated(vec![name("out")]);
    order.providers = at(world, providers);
    order
}

/// Reads that at one of these.
fn reads(world: &World, number: u8, providers: &[usize]) -> JobOrder {
    let mut order = order(number);
    let inputs = [order.inputs[0], result()];
    order.inputs = List::truncated(inputs.to_vec());
    order.providers = at(world, providers);
    order
}

fn at(world: &World, providers: &[usize]) -> List<suanli_protocol::ids::PeerId, 16> {
    List::truncated(providers.iter().map(|node| world.id(*node)).collect())
}

/// Hands it in as it is: what stays elsewhere is not among the client's blobs.
fn submit(world: &mut World, order: JobOrder) {
    let mut here = vec![order.spec, order.inputs[0]];
    for blob in here.drain(..) {
        world.nodes[0].blobs.insert(blob.blob);
    }
    world.command(0, Command::Submit(Box::new(order)));
}

/// A client and so many providers, of whom the first has made what stays.
fn made(providers: usize) -> World {
    let mut world = World::new(providers).start(&[]);
    let order = makes(&world, 1, &[1]);
    submit(&mut world, order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.peer(0).is_staying(result().blob));
    assert!(!is_home(&world));
    world
}

/// A job at one of the providers reads it, and is done.
fn is_read_at(world: &mut World, node: usize) {
    let order = reads(world, 2, &[node]);
    submit(world, order);
    world.run_until_settled();
    assert_eq!(world.job(2).end, Some(JobEnd::Done));
}

fn is_home(world: &World) -> bool {
    world.nodes[0].blobs.contains(&result().blob)
}

/// Who tried to fetch it.
fn fetched_by(world: &World) -> Vec<usize> {
    let of = |(_, fetched): &&(usize, BlobRef)| fetched.blob == result().blob;
    world
        .fetched
        .iter()
        .filter(of)
        .map(|(node, _)| *node)
        .collect()
}

fn agreement_of(world: &World, number: u8) -> AgreementId {
    let [receipt] = &*world.job(number).receipts else {
        panic!("one receipt");
    };
    let judged = world
        .records(0)
        .into_iter()
        .find_map(|record| match record {
            Record::Judged { receipt, .. } => Some(receipt),
            _ => None,
        });
    let judged = judged.unwrap();
    assert_eq!(judged.hash(), receipt.0);
    judged.body().key.agreement
}

#[test]
fn a_result_goes_from_provider_to_provider() {
    let mut world = made(2);
    is_read_at(&mut world, 2);
    assert_eq!(fetched_by(&world), [2]);
    assert!(!is_home(&world));
    world.assert_conserved();
}

#[test]
fn who_made_it_need_not_fetch_it_and_is_expected_to_be_quicker() {
    let mut world = made(2);
    let plan = world
        .peer(0)
        .plan(&reads(&world, 2, &[]), world.now(0).wall);
    let transfer = |node: usize| {
        let mut candidates = plan.candidates.iter();
        let of = candidates.find(|candidate| candidate.peer == world.id(node));
        of.unwrap().expected.transfer
    };
    assert!(transfer(1) <= transfer(2));
    is_read_at(&mut world, 1);
    assert!(fetched_by(&world).is_empty());
    let told = world.count_sent(|frame| matches!(frame, Frame::Grant(_)));
    assert_eq!(told, 0);
}

#[test]
fn a_firm_offer_is_taken_with_its_grants() {
    let mut world = made(2);
    let mut order = reads(&world, 2, &[2]);
    order.take = true;
    submit(&mut world, order);
    world.run_until_settled();
    assert_eq!(world.job(2).end, Some(JobEnd::Done));
    // The first try is older than the grant.
    assert_eq!(fetched_by(&world), [2, 2]);
    assert!(!is_home(&world));
}

#[test]
fn a_client_that_cannot_tell_who_has_it_lets_the_reader_tell() {
    let mut world = made(2);
    world.link = Box::new(|sent| match sent.frame {
        Frame::Grant(_) if (sent.from, sent.to) == (0, 1) => Fate::Drop,
        _ => Fate::Deliver,
    });
    is_read_at(&mut world, 2);
    assert!(!is_home(&world));
}

#[test]
fn what_cannot_go_directly_comes_home_first() {
    let mut world = made(2);
    // Nobody learns of grants.
    world.link = Box::new(|sent| match sent.frame {
        Frame::Grant(_) => Fate::Drop,
        _ => Fate::Deliver,
    });
    is_read_at(&mut world, 2);
    assert!(is_home(&world));
    assert!(!world.peer(0).is_staying(result().blob));
    // The reader is not to blame: it got the job again.
    assert_eq!(world.job(2).provider, Some(world.id(2)));
    world.assert_conserved();
}

#[test]
fn what_nobody_has_any_more_ends_the_job_and_is_held_against_its_maker() {
    let mut world = made(2);
    world.nodes[1].blobs.remove(&result().blob);
    let order = reads(&world, 2, &[2]);
    submit(&mut world, order);
    world.run_until_settled();
    let end = JobEnd::Failed(Reason::INPUTS_MISSING);
    assert_eq!(world.job(2).end, Some(end));
    // What was last written is on disk soon.
    world.pass(Duration::from_secs(1));
    let failed = world
        .records(0)
        .into_iter()
        .any(|record| matches!(record, Record::Failed(failure) if failure.provider == world.id(1)));
    assert!(failed);
    world.assert_conserved();
}

#[test]
fn of_two_that_made_it_the_second_is_asked_when_the_first_is_gone() {
    let mut world = World::new(3).start(&[]);
    let mut order = makes(&world, 1, &[1, 2]);
    order.verify = Verify {
        replicas: 2,
        ..Verify::NONE
    };
    submit(&mut world, order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.peer(0).is_staying(result().blob));
    for gone in [1, 2] {
        let mut order = reads(&world, 1 + gone, &[3]);
        order.job = suanli_protocol::ids::JobId::from_bytes([1 + gone; 16]);
        let node = usize::from(gone);
        if gone == 1 {
            world.nodes[node].blobs.remove(&result().blob);
        }
        submit(&mut world, order);
        world.run_until_settled();
        assert_eq!(world.job(1 + gone).end, Some(JobEnd::Done), "{gone}");
    }
}

#[test]
fn a_client_that_starts_again_knows_where_its_results_are() {
    let mut world = made(2);
    world.crash(0);
    world.boot(0);
    assert!(world.peer(0).is_staying(result().blob));
    is_read_at(&mut world, 2);
    assert!(!is_home(&world));
}

#[test]
fn a_reader_that_starts_again_gets_it_by_way_of_the_client() {
    let mut world = made(2);
    let order = reads(&world, 2, &[2]);
    submit(&mut world, order);
    let fetches = |world: &World| fetched_by(world) == [2];
    assert!(world.run_until(Duration::from_secs(5), fetches));
    world.crash(2);
    world.boot(2);
    world.run_until_settled();
    assert_eq!(world.job(2).end, Some(JobEnd::Done));
    world.assert_conserved();
}

fn grant(
    world: &World,
    by: &Signer,
    reader: usize,
    blobs: &[BlobId],
    lives: Duration,
) -> Verified<Grant> {
    let now = world.now(0).wall;
    let body = Grant {
        holder: world.id(1),
        agreement: agreement_of(world, 1),
        reader: world.id(reader),
        blobs: List::truncated(blobs.to_vec()),
        extensions: Extensions::default(),
    };
    by.sign(now, now.after(lives), body)
}

#[test]
fn only_a_client_can_let_others_read_and_only_what_was_made_for_it() {
    const MINUTE: Duration = Duration::from_mins(1);
    let mut world = made(2);
    let (agreement, it) = (agreement_of(&world, 1), result().blob);
    let may = |world: &World, node, blob| {
        let now = world.now(1).wall;
        world.peer(1).may_read(now, world.id(node), agreement, blob)
    };
    let reads = |world: &World, node| may(world, node, it);
    let other = blob(b"input").blob;
    let client = node_signer(0);
    let wrong = [
        // Signed by the reader itself; of what was not made; and told by somebody else.
        (2, grant(&world, &node_signer(2), 2, &[it], MINUTE)),
        (2, grant(&world, &client, 2, &[it, other], MINUTE)),
        (2, grant(&world, &client, 0, &[it], MINUTE)),
    ];
    for (from, grant) in wrong {
        world.say(from, 1, Frame::Grant(grant.raw()));
        world.pass(Duration::from_secs(1));
        assert!(!reads(&world, 2), "{grant:?}");
    }
    let right = grant(&world, &client, 2, &[it], MINUTE);
    assert_eq!(right.header().network, network());
    world.say(2, 1, Frame::Grant(right.raw()));
    world.pass(Duration::from_secs(1));
    assert!(reads(&world, 2));
    // Not more than was said, and not for longer.
    assert!(!may(&world, 2, other));
    world.pass(MINUTE);
    assert!(!reads(&world, 2));
}
