//! WASI preview 1 over a command's own world.
//!
//! Each function takes its arguments as the guest gives them, checks every
//! pointer against the guest's memory, and answers with an error number of the
//! standard. What a program can see follows from its job: clocks start where
//! the job says and go on with the fuel that is used (and with sleeps, which
//! take no time), random numbers come from the job's seed.
//!
//! A call first checks every pointer that it will follow, then pays (see
//! [`fuel`]), then does the work: nothing is done that was not paid.
//!
//! Absent: sockets (never supported), links, the host's files, clock and
//! randomness.

use wasmtime::{AsContextMut as _, Caller, Extern, Linker, Memory, Trap};

use super::{
    Errno, Stop, World,
    files::{Kind, Opening, Refused, Stat, Whence},
    fuel,
};

/// The name under which modules import these.
pub(super) const MODULE: &str = "wasi_snapshot_preview1";
/// Buffers of one scattered read or write: `IOV_MAX`, more are invalid.
const VECTORS_MAX: u32 = 1024;
/// Subscriptions of one poll.
const SUBSCRIPTIONS_MAX: u32 = 1024;

type Answer<T = ()> = Result<T, Refused>;

/// One call: the guest's memory, and its world.
struct Guest<'a> {
    memory: &'a mut [u8],
    world: &'a mut World,
    /// What clocks have gone on by, from fuel.
    elapsed: u64,
    /// Fuel that is left.
    left: u64,
}

/// Runs a call, and takes its fuel.
fn call(
    caller: &mut Caller<'_, World>,
    work: impl FnOnce(&mut Guest<'_>) -> Answer,
) -> wasmtime::Result<i32> {
    let fuel = caller.get_fuel()?;
    let memory = match caller.data().memory {
        Some(memory) => memory,
        None => exported(caller)?,
    };
    let mut context = caller.as_context_mut();
    let (memory, world) = memory.data_and_store_mut(&mut context);
    let mut guest = Guest {
        elapsed: world.fuel_at_start.saturating_sub(fuel),
        memory,
        world,
        left: fuel,
    };
    let owed = std::mem::take(&mut guest.world.owed);
    let paid = guest.charge(owed.saturating_add(fuel::CALL));
    let answer = paid.and_then(|()| work(&mut guest));
    let left = guest.left;
    let noted = world.watch.note(world.watch.fuel_max.saturating_sub(left));
    caller.set_fuel(left)?;
    noted.map_err(wasmtime::Error::new)?;
    match answer {
        Ok(()) => Ok(0),
        Err(Refused::Errno(errno)) => Ok(errno as i32),
        Err(Refused::NoFuel) => Err(Trap::OutOfFuel.into()),
        Err(Refused::Stop(stop)) => Err(wasmtime::Error::new(stop)),
    }
}

/// The instance's memory, which stays the same.
fn exported(caller: &mut Caller<'_, World>) -> wasmtime::Result<Memory> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(wasmtime::Error::new(Stop::NoMemory));
    };
    caller.data_mut().memory = Some(memory);
    Ok(memory)
}

macro_rules! functions {
    (
        called { $($name:ident($($argument:ident: $type:ty),*);)* }
        answered { $($fixed:ident($($fixed_type:ty),*) => $answer:expr;)* }
    ) => {
        /// What can be imported.
        pub(super) const NAMES: &[&str] =
            &["proc_exit", $(stringify!($name),)* $(stringify!($fixed),)*];

        fn offer_all(linker: &mut Linker<World>) -> wasmtime::Result<()> {
            $(linker.func_wrap(
                MODULE,
                stringify!($name),
                |mut caller: Caller<'_, World>, $($argument: $type),*| {
                    call(&mut caller, |guest| guest.$name($($argument),*))
                },
            )?;)*
            $(linker.func_wrap(
                MODULE,
                stringify!($fixed),
                |mut caller: Caller<'_, World>, $(_: $fixed_type),*| {
                    call(&mut caller, |_| $answer)
                },
            )?;)*
            Ok(())
        }
    };
}

functions! {
    called {
        args_get(list: u32, bytes: u32);
        args_sizes_get(count: u32, bytes: u32);
        environ_get(list: u32, bytes: u32);
        environ_sizes_get(count: u32, bytes: u32);
        clock_res_get(clock: u32, out: u32);
        clock_time_get(clock: u32, precision: u64, out: u32);
        fd_advise(fd: u32, offset: u64, length: u64, advice: u32);
        fd_allocate(fd: u32, offset: u64, length: u64);
        fd_close(fd: u32);
        fd_datasync(fd: u32);
        fd_fdstat_get(fd: u32, out: u32);
        fd_fdstat_set_flags(fd: u32, flags: u32);
        fd_fdstat_set_rights(fd: u32, base: u64, inheriting: u64);
        fd_filestat_get(fd: u32, out: u32);
        fd_filestat_set_size(fd: u32, size: u64);
        fd_filestat_set_times(fd: u32, accessed: u64, modified: u64, flags: u32);
        fd_pread(fd: u32, vectors: u32, count: u32, offset: u64, out: u32);
        fd_prestat_get(fd: u32, out: u32);
        fd_prestat_dir_name(fd: u32, path: u32, length: u32);
        fd_pwrite(fd: u32, vectors: u32, count: u32, offset: u64, out: u32);
        fd_read(fd: u32, vectors: u32, count: u32, out: u32);
        fd_readdir(fd: u32, buffer: u32, length: u32, cookie: u64, out: u32);
        fd_renumber(from: u32, to: u32);
        fd_seek(fd: u32, delta: i64, whence: u32, out: u32);
        fd_sync(fd: u32);
        fd_tell(fd: u32, out: u32);
        fd_write(fd: u32, vectors: u32, count: u32, out: u32);
        path_create_directory(fd: u32, path: u32, length: u32);
        path_filestat_get(fd: u32, flags: u32, path: u32, length: u32, out: u32);
        path_filestat_set_times(fd: u32, flags: u32, path: u32, length: u32, accessed: u64, modified: u64, set: u32);
        path_open(fd: u32, lookup: u32, path: u32, length: u32, how: u32, rights: u64, inheriting: u64, flags: u32, out: u32);
        path_readlink(fd: u32, path: u32, length: u32, buffer: u32, size: u32, out: u32);
        path_remove_directory(fd: u32, path: u32, length: u32);
        path_rename(fd: u32, path: u32, length: u32, to: u32, new: u32, new_length: u32);
        path_unlink_file(fd: u32, path: u32, length: u32);
        poll_oneoff(subscriptions: u32, events: u32, count: u32, out: u32);
        random_get(buffer: u32, length: u32);
    }
    // What there is none of here.
    answered {
        sched_yield() => Ok(());
        proc_raise(u32) => Err(Errno::NotSupported.into());
        path_link(u32, u32, u32, u32, u32, u32, u32) => Err(Errno::NotSupported.into());
        path_symlink(u32, u32, u32, u32, u32) => Err(Errno::NotSupported.into());
        sock_accept(u32, u32, u32) => Err(Errno::NotSocket.into());
        sock_recv(u32, u32, u32, u32, u32, u32) => Err(Errno::NotSocket.into());
        sock_send(u32, u32, u32, u32, u32) => Err(Errno::NotSocket.into());
        sock_shutdown(u32, u32) => Err(Errno::NotSocket.into());
    }
}

/// Offers all functions of the standard.
pub(super) fn offer(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    offer_all(linker)?;
    linker.func_wrap(MODULE, "proc_exit", |code: u32| -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Stop::Exit(code)))
    })?;
    Ok(())
}

// ---- fuel and memory ------------------------------------------------------

impl Guest<'_> {
    /// Pays for what is done next.
    fn charge(&mut self, units: u64) -> Answer {
        let left = self.left.checked_sub(units);
        self.left = left.unwrap_or(0);
        left.map(|_| ()).ok_or(Refused::NoFuel)
    }

    /// Pays for so many of something.
    fn charge_each(&mut self, count: u32, units: u64) -> Answer {
        self.charge(u64::from(count).saturating_mul(units))
    }

    fn bytes(&mut self, at: u32, length: u32) -> Answer<&mut [u8]> {
        let (at, length) = (index(at), index(length));
        let end = at.checked_add(length).ok_or(Errno::Fault)?;
        Ok(self.memory.get_mut(at..end).ok_or(Errno::Fault)?)
    }

    fn put(&mut self, at: u32, what: &[u8]) -> Answer {
        let length = u32::try_from(what.len()).map_err(|_| Errno::Overflow)?;
        self.charge_each(length, fuel::BYTE)?;
        self.bytes(at, length)?.copy_from_slice(what);
        Ok(())
    }

    fn put_u32(&mut self, at: u32, value: u32) -> Answer {
        self.put(at, &value.to_le_bytes())
    }

    fn put_u64(&mut self, at: u32, value: u64) -> Answer {
        self.put(at, &value.to_le_bytes())
    }

    fn get<const N: usize>(&mut self, at: u32) -> Answer<[u8; N]> {
        let length = u32::try_from(N).map_err(|_| Errno::Overflow)?;
        let bytes = self.bytes(at, length)?;
        Ok(bytes.first_chunk().copied().ok_or(Errno::Fault)?)
    }

    fn get_u32(&mut self, at: u32) -> Answer<u32> {
        self.get(at).map(u32::from_le_bytes)
    }

    /// Pays for looking it up, too.
    fn path(&mut self, at: u32, length: u32) -> Answer<String> {
        if index(length) > suanli_executor::limits::PATH_BYTES_MAX {
            return Err(Errno::NameTooLong.into());
        }
        self.charge(fuel::PATH)?;
        self.charge_each(length, fuel::PATH_BYTE)?;
        let bytes = self.bytes(at, length)?;
        let path = str::from_utf8(bytes).map_err(|_| Errno::IllegalBytes)?;
        if path.contains('\0') {
            return Err(Errno::Invalid.into());
        }
        Ok(path.to_owned())
    }

    /// The pieces of memory that a scattered read or write names, all of them
    /// checked; empty ones are left out.
    fn vectors(&mut self, at: u32, count: u32) -> Answer<Vec<(u32, u32)>> {
        if count > VECTORS_MAX {
            return Err(Errno::Invalid.into());
        }
        self.charge_each(count, fuel::VECTOR)?;
        let mut pieces = Vec::with_capacity(index(count));
        let mut all = 0_u32;
        for n in 0..count {
            let entry = offset(at, n, 8)?;
            let (start, length) = (self.get_u32(entry)?, self.get_u32(offset(entry, 1, 4)?)?);
            self.bytes(start, length)?;
            all = all.checked_add(length).ok_or(Errno::Invalid)?;
            if length > 0 {
                pieces.push((start, length));
            }
        }
        Ok(pieces)
    }

    fn put_list(&mut self, list: u32, bytes: u32, texts: &[String]) -> Answer {
        let count = u32::try_from(texts.len()).map_err(|_| Errno::Overflow)?;
        self.charge_each(count, fuel::TEXT)?;
        let mut at = bytes;
        for (n, text) in (0..).zip(texts) {
            let length = u32::try_from(text.len()).map_err(|_| Errno::Overflow)?;
            self.put_u32(offset(list, n, 4)?, at)?;
            self.put(at, text.as_bytes())?;
            let end = offset(at, 1, length)?;
            self.put(end, &[0])?;
            at = offset(end, 1, 1)?;
        }
        Ok(())
    }

    fn put_sizes(&mut self, count: u32, bytes: u32, texts: &[String]) -> Answer {
        let texts_count = u32::try_from(texts.len()).map_err(|_| Errno::Overflow)?;
        self.charge_each(texts_count, fuel::TEXT)?;
        let all: usize = texts.iter().map(|text| text.len() + 1).sum();
        self.put_u32(count, texts_count)?;
        self.put_u32(bytes, u32::try_from(all).map_err(|_| Errno::Overflow)?)
    }
}

// ---- arguments, clocks, chance --------------------------------------------

impl Guest<'_> {
    fn args_get(&mut self, list: u32, bytes: u32) -> Answer {
        let texts = self.world.arguments.clone();
        self.put_list(list, bytes, &texts)
    }

    fn args_sizes_get(&mut self, count: u32, bytes: u32) -> Answer {
        let texts = self.world.arguments.clone();
        self.put_sizes(count, bytes, &texts)
    }

    fn environ_get(&mut self, list: u32, bytes: u32) -> Answer {
        let texts = self.world.variables.clone();
        self.put_list(list, bytes, &texts)
    }

    fn environ_sizes_get(&mut self, count: u32, bytes: u32) -> Answer {
        let texts = self.world.variables.clone();
        self.put_sizes(count, bytes, &texts)
    }

    fn clock_res_get(&mut self, clock: u32, out: u32) -> Answer {
        self.now(clock)?;
        self.put_u64(out, 1)
    }

    fn clock_time_get(&mut self, clock: u32, _precision: u64, out: u32) -> Answer {
        let now = self.now(clock)?;
        self.put_u64(out, now)
    }

    /// The wall clock starts where the job says, the others at zero.
    fn now(&self, clock: u32) -> Result<u64, Errno> {
        let gone = self.elapsed.saturating_add(self.world.slept_ns);
        match clock {
            0 => Ok(self.world.clock_ns.saturating_add(gone)),
            1..=3 => Ok(gone),
            _ => Err(Errno::Invalid),
        }
    }

    fn random_get(&mut self, buffer: u32, length: u32) -> Answer {
        self.bytes(buffer, length)?;
        self.charge_each(length, fuel::BYTE)?;
        let (start, end) = (index(buffer), index(buffer) + index(length));
        let bytes = self.memory.get_mut(start..end).ok_or(Errno::Fault)?;
        self.world.chance.fill(bytes);
        Ok(())
    }

    /// Files are always ready; a sleep lets the clocks go on, and takes no time.
    fn poll_oneoff(&mut self, subscriptions: u32, events: u32, count: u32, out: u32) -> Answer {
        if count == 0 || count > SUBSCRIPTIONS_MAX {
            return Err(Errno::Invalid.into());
        }
        self.charge_each(count, fuel::SUBSCRIPTION)?;
        let asked = (0..count).map(|n| self.subscription(offset(subscriptions, n, 48)?));
        let asked = asked.collect::<Answer<Vec<_>>>()?;
        let is_file = |subscription: &Subscription| subscription.wait_ns.is_none();
        let first = if asked.iter().any(is_file) {
            0
        } else {
            let waits = asked.iter().filter_map(|subscription| subscription.wait_ns);
            waits.min().unwrap_or(0)
        };
        self.world.slept_ns = self.world.slept_ns.saturating_add(first);
        let ready = |subscription: &&Subscription| {
            subscription.wait_ns.is_none_or(|wait_ns| wait_ns <= first)
        };
        let mut happened = 0;
        for subscription in asked.iter().filter(ready) {
            let mut event = [0; 32];
            event[..8].copy_from_slice(&subscription.user_data);
            event[10] = subscription.kind;
            self.put(offset(events, happened, 32)?, &event)?;
            happened += 1;
        }
        self.put_u32(out, happened)
    }

    fn subscription(&mut self, at: u32) -> Answer<Subscription> {
        let raw: [u8; 48] = self.get(at)?;
        let word = |from: usize| {
            raw.get(from..)
                .and_then(|rest| rest.first_chunk().copied())
                .map_or(0, u64::from_le_bytes)
        };
        let wait_ns = match raw[8] {
            0 => {
                let clock = u32::from_le_bytes([raw[16], raw[17], raw[18], raw[19]]);
                let (now, timeout) = (self.now(clock)?, word(24));
                let is_absolute = raw[40] & 1 != 0;
                Some(if is_absolute {
                    timeout.saturating_sub(now)
                } else {
                    timeout
                })
            }
            1 | 2 => None,
            _ => return Err(Errno::Invalid.into()),
        };
        Ok(Subscription {
            user_data: word(0).to_le_bytes(),
            kind: raw[8],
            wait_ns,
        })
    }
}

/// What a program waits for.
struct Subscription {
    user_data: [u8; 8],
    kind: u8,
    /// How long, if it is a clock.
    wait_ns: Option<u64>,
}

// ---- open files -----------------------------------------------------------

const RIGHT_WRITE: u64 = 1 << 6;
const RIGHTS_ALL: u64 = (1 << 30) - 1;
const FLAG_APPEND: u32 = 1;
/// The name of the one folder that is open at the start.
const ROOT_NAME: &str = "/";

impl Guest<'_> {
    fn fd_advise(&mut self, fd: u32, _offset: u64, _length: u64, _advice: u32) -> Answer {
        self.world.files.stat(fd).map(|_| ())
    }

    fn fd_allocate(&mut self, fd: u32, offset: u64, length: u64) -> Answer {
        let size = offset.checked_add(length).ok_or(Errno::FileTooLarge)?;
        let before = self.world.files.stat(fd)?.bytes;
        self.set_size(fd, size.max(before))
    }

    fn fd_close(&mut self, fd: u32) -> Answer {
        self.world.files.close(fd)
    }

    fn fd_datasync(&mut self, fd: u32) -> Answer {
        self.world.files.stat(fd).map(|_| ())
    }

    fn fd_sync(&mut self, fd: u32) -> Answer {
        self.world.files.stat(fd).map(|_| ())
    }

    fn fd_fdstat_get(&mut self, fd: u32, out: u32) -> Answer {
        let stat = self.world.files.stat(fd)?;
        let (append, write) = self.world.files.modes(fd)?;
        let rights = match stat.kind {
            Kind::Stream => RIGHT_WRITE,
            Kind::Folder => RIGHTS_ALL,
            Kind::File if write => RIGHTS_ALL,
            Kind::File => RIGHTS_ALL & !RIGHT_WRITE,
        };
        let mut raw = [0; 24];
        raw[0] = stat.kind as u8;
        raw[2] = u8::from(append);
        raw[8..16].copy_from_slice(&rights.to_le_bytes());
        raw[16..24].copy_from_slice(&RIGHTS_ALL.to_le_bytes());
        self.put(out, &raw)
    }

    fn fd_fdstat_set_flags(&mut self, fd: u32, flags: u32) -> Answer {
        self.world.files.set_append(fd, flags & FLAG_APPEND != 0)
    }

    fn fd_fdstat_set_rights(&mut self, fd: u32, _base: u64, _inheriting: u64) -> Answer {
        self.world.files.stat(fd).map(|_| ())
    }

    fn fd_filestat_get(&mut self, fd: u32, out: u32) -> Answer {
        let stat = self.world.files.stat(fd)?;
        self.put_stat(out, stat)
    }

    fn fd_filestat_set_size(&mut self, fd: u32, size: u64) -> Answer {
        self.set_size(fd, size)
    }

    /// Zeroing a file costs as much as writing it.
    fn set_size(&mut self, fd: u32, size: u64) -> Answer {
        let grown = self.world.files.check_size(fd, size)?;
        self.charge(grown.saturating_mul(fuel::BYTE))?;
        self.world.files.set_size(fd, size)
    }

    /// Files have no times.
    fn fd_filestat_set_times(&mut self, fd: u32, _: u64, _: u64, _: u32) -> Answer {
        self.world.files.stat(fd).map(|_| ())
    }

    fn fd_prestat_get(&mut self, fd: u32, out: u32) -> Answer {
        if fd != super::files::ROOT {
            return Err(Errno::BadDescriptor.into());
        }
        self.world.files.stat(fd)?;
        self.put_u32(out, 0)?;
        self.put_u32(
            offset(out, 1, 4)?,
            u32::try_from(ROOT_NAME.len()).map_err(|_| Errno::Overflow)?,
        )
    }

    fn fd_prestat_dir_name(&mut self, fd: u32, path: u32, length: u32) -> Answer {
        if fd != super::files::ROOT {
            return Err(Errno::BadDescriptor.into());
        }
        if index(length) < ROOT_NAME.len() {
            return Err(Errno::NameTooLong.into());
        }
        self.put(path, ROOT_NAME.as_bytes())
    }

    fn fd_read(&mut self, fd: u32, vectors: u32, count: u32, out: u32) -> Answer {
        self.read(fd, vectors, count, None, out)
    }

    fn fd_pread(&mut self, fd: u32, vectors: u32, count: u32, at: u64, out: u32) -> Answer {
        self.read(fd, vectors, count, Some(at), out)
    }

    /// What fails late has read what came before.
    fn read(&mut self, fd: u32, vectors: u32, count: u32, at: Option<u64>, out: u32) -> Answer {
        let pieces = self.vectors(vectors, count)?;
        self.bytes(out, 4)?;
        let mut left = self.world.files.left(fd, at)?;
        let mut done = 0_u32;
        for (into, length) in pieces {
            let count = u32::try_from(left).unwrap_or(u32::MAX).min(length);
            if count == 0 {
                break;
            }
            self.charge_each(count, fuel::BYTE)?;
            let place = at.map(|at| at.saturating_add(u64::from(done)));
            let (start, end) = (index(into), index(into) + index(count));
            let bytes = self.memory.get_mut(start..end).ok_or(Errno::Fault)?;
            self.world.files.read(fd, place, bytes)?;
            left -= u64::from(count);
            done += count;
        }
        self.put_u32(out, done)
    }

    fn fd_write(&mut self, fd: u32, vectors: u32, count: u32, out: u32) -> Answer {
        self.write(fd, vectors, count, None, out)
    }

    fn fd_pwrite(&mut self, fd: u32, vectors: u32, count: u32, at: u64, out: u32) -> Answer {
        self.write(fd, vectors, count, Some(at), out)
    }

    /// What fails late has written what came before, and says how much.
    fn write(&mut self, fd: u32, vectors: u32, count: u32, at: Option<u64>, out: u32) -> Answer {
        let pieces = self.vectors(vectors, count)?;
        self.bytes(out, 4)?;
        self.world.files.check_write(fd, at)?;
        let mut done = 0_u32;
        for (from, length) in pieces {
            let place = at.map(|at| at.saturating_add(u64::from(done)));
            match self.write_piece(fd, place, (from, length)) {
                Err(Refused::Errno(_)) if done > 0 => break,
                written => written?,
            }
            done += length;
        }
        self.put_u32(out, done)
    }

    fn write_piece(&mut self, fd: u32, at: Option<u64>, (from, length): (u32, u32)) -> Answer {
        // A write far behind the end fills what is between.
        let grown = self.world.files.growth(fd, at, u64::from(length))?;
        let cost = grown.max(length.into()).saturating_mul(fuel::BYTE);
        self.charge(cost)?;
        let (start, end) = (index(from), index(from) + index(length));
        if self.world.files.is_stderr(fd) {
            let bytes = self.memory.get(start..end).ok_or(Errno::Fault)?;
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            self.charge(u64::try_from(lines).unwrap_or(u64::MAX) * fuel::LINE)?;
        }
        let bytes = self.memory.get(start..end).ok_or(Errno::Fault)?;
        self.world.files.write(fd, at, bytes)?;
        self.world.tell(fd, bytes);
        Ok(())
    }

    fn fd_seek(&mut self, fd: u32, delta: i64, whence: u32, out: u32) -> Answer {
        let whence = match whence {
            0 => Whence::Start,
            1 => Whence::Here,
            2 => Whence::End,
            _ => return Err(Errno::Invalid.into()),
        };
        let at = self.world.files.seek(fd, delta, whence)?;
        self.put_u64(out, at)
    }

    fn fd_tell(&mut self, fd: u32, out: u32) -> Answer {
        let at = self.world.files.seek(fd, 0, Whence::Here)?;
        self.put_u64(out, at)
    }

    fn fd_renumber(&mut self, from: u32, to: u32) -> Answer {
        self.world.files.renumber(from, to)
    }

    /// Entries after `cookie`; the last may be cut, as the standard has it.
    fn fd_readdir(&mut self, fd: u32, buffer: u32, length: u32, cookie: u64, out: u32) -> Answer {
        self.bytes(buffer, length)?;
        self.bytes(out, 4)?;
        let mut listing = Vec::new();
        let mut after = cookie;
        while listing.len() < index(length) {
            self.charge(fuel::ENTRY)?;
            let Some((name, stat, cookie)) = self.world.files.entry(fd, after)? else {
                break;
            };
            after = cookie;
            let name_length = u32::try_from(name.len()).map_err(|_| Errno::Overflow)?;
            listing.extend_from_slice(&cookie.to_le_bytes());
            listing.extend_from_slice(&stat.number.to_le_bytes());
            listing.extend_from_slice(&name_length.to_le_bytes());
            listing.extend_from_slice(&u32::from(stat.kind as u8).to_le_bytes());
            listing.extend_from_slice(name.as_bytes());
        }
        listing.truncate(index(length));
        self.put(buffer, &listing)?;
        self.put_u32(
            out,
            u32::try_from(listing.len()).map_err(|_| Errno::Overflow)?,
        )
    }

    fn put_stat(&mut self, out: u32, stat: Stat) -> Answer {
        let mut raw = [0; 64];
        raw[0] = 1;
        raw[8..16].copy_from_slice(&stat.number.to_le_bytes());
        raw[16] = stat.kind as u8;
        raw[24] = 1;
        raw[32..40].copy_from_slice(&stat.bytes.to_le_bytes());
        self.put(out, &raw)
    }
}

// ---- paths ----------------------------------------------------------------

impl Guest<'_> {
    #[expect(clippy::too_many_arguments, reason = "the standard has so many")]
    fn path_open(
        &mut self,
        fd: u32,
        _lookup: u32,
        path: u32,
        length: u32,
        how: u32,
        rights: u64,
        _inheriting: u64,
        flags: u32,
        out: u32,
    ) -> Answer {
        self.bytes(out, 4)?;
        let path = self.path(path, length)?;
        let opening = Opening {
            create: how & 1 != 0,
            folder: how & 2 != 0,
            exclusive: how & 4 != 0,
            truncate: how & 8 != 0,
            append: flags & FLAG_APPEND != 0,
            // Folders are opened with every right there is.
            write: rights & RIGHT_WRITE != 0 && how & 2 == 0,
        };
        let number = self.world.files.open(fd, &path, opening)?;
        self.put_u32(out, number)
    }

    fn path_create_directory(&mut self, fd: u32, path: u32, length: u32) -> Answer {
        let path = self.path(path, length)?;
        self.world.files.make_folder(fd, &path)
    }

    fn path_filestat_get(
        &mut self,
        fd: u32,
        _flags: u32,
        path: u32,
        length: u32,
        out: u32,
    ) -> Answer {
        let path = self.path(path, length)?;
        let stat = self.world.files.stat_path(fd, &path)?;
        self.put_stat(out, stat)
    }

    #[expect(clippy::too_many_arguments, reason = "the standard has so many")]
    fn path_filestat_set_times(
        &mut self,
        fd: u32,
        _: u32,
        path: u32,
        length: u32,
        _: u64,
        _: u64,
        _: u32,
    ) -> Answer {
        let path = self.path(path, length)?;
        self.world.files.stat_path(fd, &path).map(|_| ())
    }

    fn path_remove_directory(&mut self, fd: u32, path: u32, length: u32) -> Answer {
        let path = self.path(path, length)?;
        self.world.files.remove(fd, &path, true)
    }

    fn path_unlink_file(&mut self, fd: u32, path: u32, length: u32) -> Answer {
        let path = self.path(path, length)?;
        self.world.files.remove(fd, &path, false)
    }

    fn path_rename(
        &mut self,
        fd: u32,
        path: u32,
        length: u32,
        to: u32,
        new: u32,
        new_length: u32,
    ) -> Answer {
        let (path, new) = (self.path(path, length)?, self.path(new, new_length)?);
        self.charge(self.world.files.folders().saturating_mul(fuel::FOLDER))?;
        self.world.files.rename((fd, &path), (to, &new))
    }

    /// There are no links, so nothing is one.
    fn path_readlink(&mut self, fd: u32, path: u32, length: u32, _: u32, _: u32, _: u32) -> Answer {
        let path = self.path(path, length)?;
        self.world.files.stat_path(fd, &path)?;
        Err(Errno::Invalid.into())
    }
}

/// Guests have 32-bit addresses, and so do all hosts.
fn index(address: u32) -> usize {
    usize::try_from(address).unwrap_or(usize::MAX)
}

/// The address of the entry `n` of a list.
fn offset(at: u32, n: u32, size: u32) -> Result<u32, Errno> {
    let distance = n.checked_mul(size).ok_or(Errno::Fault)?;
    at.checked_add(distance).ok_or(Errno::Fault)
}
