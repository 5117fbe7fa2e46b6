//! A thread with just the stack that something has in a worker.
//!
//! What recurses in a check must overflow here if it would overflow a worker. The
//! thread handles its signals on a stack of their own, so that the fuzzer can still
//! keep the input that overflowed the first.

use std::{
    cell::OnceCell,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use suanli_executor::limits::WORKER_STACK_BYTES;

/// What the fuzzer's handler of crashes needs for its report.
const SIGNAL_STACK_BYTES: usize = 1 << 20;

thread_local! {
    static ROOM: OnceCell<Room> = const { OnceCell::new() };
}

struct Room {
    inputs: SyncSender<Vec<u8>>,
    done: Receiver<()>,
}

/// Has `target` look at these bytes in a thread with a worker's stack. A target that panics
/// there has ended the process already.
///
/// # Panics
/// If there is no memory for the thread.
pub fn with_worker_stack(target: fn(&[u8]), bytes: &[u8]) {
    with_stack(WORKER_STACK_BYTES, target, bytes);
}

/// The same with a stack of that many bytes. All inputs of a process have the first one's.
///
/// # Panics
/// If there is no memory for the thread.
pub fn with_stack(stack: usize, target: fn(&[u8]), bytes: &[u8]) {
    ROOM.with(|room| {
        let room = room.get_or_init(|| Room::open(stack, target));
        room.inputs.send(bytes.to_vec()).expect("the thread waits");
        room.done.recv().expect("the thread answers");
    });
}

impl Room {
    fn open(stack: usize, target: fn(&[u8])) -> Self {
        let (inputs, taken) = sync_channel::<Vec<u8>>(1);
        let (said, done) = sync_channel(1);
        let look = move || {
            give_signals_a_stack();
            for bytes in taken {
                target(&bytes);
                if said.send(()).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .stack_size(stack)
            .spawn(look)
            .expect("there is memory for a stack");
        Self { inputs, done }
    }
}

fn give_signals_a_stack() {
    // It is needed as long as the process runs.
    let stack = Box::leak(vec![0_u8; SIGNAL_STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: SIGNAL_STACK_BYTES,
    };
    // SAFETY: the stack lives for ever and nothing else uses it; the old one is not asked for.
    let set = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    assert_eq!(set, 0, "no stack for signals");
}
