//! Bytes are what one end of a worker's socket sends, in pieces of any size: first
//! what a worker says to its parent, then what a parent says to its worker. Each frame
//! is accepted or refused wherever the pieces end, and costs memory only for what came.

#![no_main]

use std::{
    io::{ErrorKind, IoSlice, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
};

use libfuzzer_sys::{Corpus, fuzz_target};
use suanli_executor::{
    ipc::{DESCRIPTORS_MAX, IpcError, Reply, Request, WorkerEnd, take_reply},
    limits::{REPLY_FRAME_BYTES_MAX, REQUEST_FRAME_BYTES_MAX},
};
use suanli_executor_fuzz::{cursor::Cursor, memory::most_held, show};
use suanli_protocol::wire;

/// A socket's buffer holds so much without a reader, and so many pieces.
const BYTES_MAX: usize = 64 << 10;
const PIECES_MAX: usize = 64;
/// Elements are wider in memory than on the wire, and lists grow by doubling; text is
/// read in steps of 64 KiB.
const MEMORY_FACTOR: usize = 64;
const MEMORY_BASE: usize = 128 << 10;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if bytes.len() > BYTES_MAX {
        return Corpus::Reject;
    }
    let mut cursor = Cursor::new(bytes);
    let is_reply = cursor.byte() % 2 == 0;
    let piece = 1 + usize::from(cursor.byte());
    let stream = cursor.rest();
    if is_reply {
        from_worker(stream, piece);
    } else {
        from_parent(stream, piece);
    }
    Corpus::Keep
});

fn from_worker(stream: &[u8], piece: usize) {
    let whole = replies(stream, stream.len().max(1));
    let in_pieces = replies(stream, piece);
    show(|| format!("{:#?}\nthen {:?}", whole.0, whole.1));
    assert_eq!(whole, in_pieces, "where pieces end changes what is read");
    let mut sent = Vec::new();
    for reply in &whole.0 {
        let body = wire::encode(reply);
        assert!(body.len() <= REPLY_FRAME_BYTES_MAX);
        sent.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        sent.extend(body);
    }
    assert!(stream.starts_with(&sent), "a reply has another encoding");
}

/// All that was understood, and why reading ended before the end.
fn replies(stream: &[u8], piece: usize) -> (Vec<Reply>, Option<String>) {
    let mut replies = Vec::new();
    let mut received = Vec::new();
    for piece in stream.chunks(piece) {
        received.extend_from_slice(piece);
        loop {
            let (taken, held) = most_held(|| take_reply(&mut received));
            let held_max = MEMORY_BASE + received.len() * MEMORY_FACTOR;
            assert!(held <= held_max, "{held} bytes held for {}", received.len());
            match taken {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(error) => return (replies, Some(error.to_string())),
            }
        }
        assert!(
            received.len() < 4 + REPLY_FRAME_BYTES_MAX,
            "a whole frame is left"
        );
    }
    (replies, None)
}

fn from_parent(stream: &[u8], piece: usize) {
    let (parent, worker) = UnixStream::pair().expect("there are sockets");
    let worker = WorkerEnd::new(worker);
    let piece = piece.max(stream.len().div_ceil(PIECES_MAX));
    for (number, piece) in stream.chunks(piece).enumerate() {
        // Where a descriptor comes with a piece, a read ends.
        send(&parent, piece, number % 2 == 0);
    }
    parent.shutdown(Shutdown::Write).expect("it is open");
    let mut understood = Vec::new();
    loop {
        let (received, held) = most_held(|| worker.receive());
        // A worker trusts its parent with the length of a frame, up to its bound.
        let held_max = MEMORY_BASE + REQUEST_FRAME_BYTES_MAX + stream.len() * MEMORY_FACTOR;
        assert!(held <= held_max, "{held} bytes held for {}", stream.len());
        match received {
            Ok((request, descriptors)) => {
                assert!(descriptors.len() <= DESCRIPTORS_MAX);
                understood.push(request);
            }
            Err(IpcError::Closed | IpcError::Codec(_) | IpcError::FrameTooLong { .. }) => break,
            Err(IpcError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error @ (IpcError::Io(_) | IpcError::Group(_))) => panic!("{error}"),
        }
    }
    show(|| format!("{understood:#?}"));
    let encoded = understood
        .iter()
        .map(|request: &Request| wire::encode(request).len() + 4);
    assert!(encoded.sum::<usize>() <= stream.len());
}

fn send(mut parent: &UnixStream, piece: &[u8], with_descriptor: bool) {
    if !with_descriptor {
        return parent.write_all(piece).expect("the socket holds it");
    }
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let own = [parent.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&own)));
    // The fuzzer's own clock interrupts.
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(
            parent,
            &[IoSlice::new(piece)],
            &mut control,
            SendFlags::empty(),
        )
    });
    assert_eq!(sent.expect("the socket holds it"), piece.len());
}
