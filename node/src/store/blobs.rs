//! Blobs: files named by the BLAKE3 hash of their bytes.
//!
//! A blob grows under a name that ends in `.partial` and gets its own name
//! only after its hash was checked and its bytes synced; partials are removed
//! at the next start. Beside it lies a small file that says until when to keep
//! it; without one, it is kept for the default retention from when it was
//! written. What is used of the quota is tallied at open and kept in an atomic
//! number; a reservation precedes every byte.
//!
//! ```text
//! blobs/ab/cdef…          the bytes of the blob abcdef…
//! blobs/ab/cdef….until    wall milliseconds, in decimal
//! blobs/ab/cdef….partial  incoming
//! ```
//!
//! An import clones extents where the file system can, and copies otherwise.
//! It never hard-links: whoever owns the source could change a blob under its
//! name. Absent: who may read a blob, and proofs over parts of it.

use std::{
    collections::VecDeque,
    fs::{self, File, FileTimes},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use blake3::{Hash, Hasher};
use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, ioctl_ficlone, renameat_with};

use super::disk::{create_private_dir, private_file, sync_dir};

const PARTIAL: &str = "partial";
const UNTIL: &str = "until";
const COPY_BYTES: usize = 128 * 1024;
/// A blob of at most so many bytes is kept in memory when it was read.
const SMALL_BYTES: u64 = 16 * 1024;
/// So many of them.
const SMALL_KEPT: usize = 64;

/// How blobs are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// The most bytes that all blobs together may take.
    pub quota_bytes: u64,
    /// How long a blob is kept that nobody named a time for.
    pub retention: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            quota_bytes: 10 * 1024 * 1024 * 1024,
            retention: Duration::from_secs(24 * 3600),
        }
    }
}

/// A time on the wall clock, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallMs(pub u64);

/// Why a blob was not stored or found.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It would exceed the quota.
    #[error(
        "{wanted} bytes exceed the blob quota: {used} of {quota} bytes are used; raise the quota or remove results"
    )]
    QuotaExceeded {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes used or reserved.
        used: u64,
        /// The limit.
        quota: u64,
    },
    /// The disk has no room.
    #[error("the disk has no room for {0} bytes; free some space")]
    NoRoom(u64),
    /// There is no such blob.
    #[error("no such blob")]
    Unknown,
    /// It is here already.
    #[error("the blob is here already")]
    Present,
    /// It is coming in already.
    #[error("the blob is coming in already")]
    Incoming,
    /// What came in is something else.
    #[error("the bytes do not have the hash or size they should")]
    Mismatch,
    /// The disk did not do it.
    #[error("the blob folder could not be used")]
    Io(#[from] io::Error),
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// How many blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The blobs of one node. Cheap to clone. All methods block on the disk.
#[derive(Debug, Clone)]
pub struct Blobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    config: Config,
    used: AtomicU64,
    imports: AtomicU64,
    /// Small blobs that were read, newest last: the specs of jobs come again
    /// and again. None that was removed.
    small: Mutex<VecDeque<(Hash, Arc<[u8]>)>>,
}

impl Shared {
    fn small(&self) -> MutexGuard<'_, VecDeque<(Hash, Arc<[u8]>)>> {
        self.small.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs {
    /// Opens the folder, removes partials and tallies what is there. The caller
    /// holds the data directory's lock.
    pub fn open(dir: &Path, config: Config) -> io::Result<Self> {
        create_private_dir(dir)?;
        let blobs = Self {
            shared: Arc::new(Shared {
                dir: dir.to_path_buf(),
                config,
                used: AtomicU64::new(0),
                imports: AtomicU64::new(0),
                small: Mutex::default(),
            }),
        };
        for path in blobs.files()? {
            if path.extension().is_some_and(|e| e == PARTIAL) {
                fs::remove_file(&path)?;
            } else if hash_of(&path).is_some() {
                blobs
                    .shared
                    .used
                    .fetch_add(fs::metadata(&path)?.len(), Ordering::Relaxed);
            }
        }
        Ok(blobs)
    }

    /// Stores bytes, which may be none.
    pub fn put_bytes(&self, bytes: &[u8], until: Option<WallMs>) -> Result<Hash, BlobError> {
        let hash = blake3::hash(bytes);
        if self.has(&hash) {
            self.keep_until(hash, until)?;
            return Ok(hash);
        }
        // Under a name of its own: the same bytes may be coming in another way.
        let mut receiving = self.receive(bytes.len() as u64)?;
        receiving.write(bytes)?;
        Ok(receiving.commit(until)?.0)
    }

    /// Takes over a file whose every byte the caller has verified, on the same
    /// file system: it is renamed. Synced first where it must survive a crash.
    pub fn adopt(
        &self,
        path: &Path,
        hash: Hash,
        durable: bool,
        until: Option<WallMs>,
    ) -> Result<(), BlobError> {
        if self.has(&hash) {
            fs::remove_file(path)?;
            if durable {
                self.sync(&hash)?;
            }
            return self.keep_until(hash, until);
        }
        let file = File::open(path)?;
        let reserved = self.reserve(file.metadata()?.len())?;
        let to = self.path(&hash);
        if let Some(dir) = to.parent() {
            create_private_dir(dir)?;
        }
        if durable {
            let partial = Partial {
                file: private_file().open(path)?,
                path: Some(path.to_path_buf()),
            };
            return self.settle(partial, reserved, hash, until);
        }
        fs::rename(path, &to)?;
        reserved.keep();
        self.keep_until(hash, until)
    }

    /// Stores bytes that need not survive a crash, without waiting for the disk.
    pub fn put_volatile(&self, bytes: &[u8]) -> Result<Hash, BlobError> {
        let hash = blake3::hash(bytes);
        if self.has(&hash) {
            return Ok(hash);
        }
        let mut receiving = self.receive(bytes.len() as u64)?;
        receiving.write(bytes)?;
        let to = self.path(&hash);
        self.make_folder_of(&to)?;
        if receiving.partial.place(&to)? {
            receiving.reserved.keep();
        }
        Ok(hash)
    }

    /// Makes a blob durable that may have been stored without waiting for the
    /// disk.
    pub fn sync(&self, hash: &Hash) -> Result<(), BlobError> {
        let path = self.path(hash);
        self.open_blob(hash)?.sync_all()?;
        if let Some(dir) = path.parent() {
            sync_dir(dir)?;
        }
        sync_dir(&self.shared.dir)?;
        Ok(())
    }

    /// Removes everything: for blobs that are only a cache.
    pub fn clear(&self) -> Result<(), BlobError> {
        for path in self.files()? {
            if let Some(hash) = hash_of(&path) {
                self.remove(&hash)?;
            }
        }
        Ok(())
    }

    /// Where a blob's bytes are, if it is here.
    pub fn file_of(&self, hash: &Hash) -> Option<PathBuf> {
        Some(self.path(hash)).filter(|path| path.is_file())
    }

    /// Stores a copy of a file, hashing it on the way.
    pub fn import_file(
        &self,
        path: &Path,
        until: Option<WallMs>,
    ) -> Result<(Hash, u64), BlobError> {
        let mut source = File::open(path)?;
        let size = source.metadata()?.len();
        let reserved = self.reserve(size)?;
        let number = self.shared.imports.fetch_add(1, Ordering::Relaxed);
        let partial = self.shared.dir.join(format!("import-{number}.{PARTIAL}"));
        let mut partial = Partial::create(partial)?;
        let cloned = ioctl_ficlone(&partial.file, &source).is_ok();
        // A clone is hashed itself: the source may change under our reading.
        let hash = if cloned {
            hash_exactly(&mut partial.file, size, None)?
        } else {
            hash_exactly(&mut source, size, Some(&mut partial.file))?
        };
        if self.has(&hash) {
            self.keep_until(hash, until)?;
        } else {
            self.settle(partial, reserved, hash, until)?;
        }
        Ok((hash, size))
    }

    /// Begins a blob that comes in piece by piece: its file has its full size
    /// from the start, its bytes are counted against the quota.
    pub fn begin(&self, hash: Hash, size: u64) -> Result<Incoming, BlobError> {
        if self.has(&hash) {
            return Err(BlobError::Present);
        }
        let reserved = self.reserve(size)?;
        let path = self.path(&hash);
        self.make_folder_of(&path)?;
        let partial = Partial::create(path.with_extension(PARTIAL))?;
        if size > 0 {
            match fallocate(&partial.file, FallocateFlags::empty(), 0, size) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                    return Err(BlobError::NoRoom(size));
                }
                // Not every file system can; writing will tell.
                Err(_) => partial.file.set_len(size)?,
            }
        }
        Ok(Incoming {
            blobs: self.clone(),
            partial,
            reserved,
            hash,
        })
    }

    /// Begins a blob whose hash nobody has said. `size` is reserved at once;
    /// what comes beyond it is reserved as it comes.
    pub fn receive(&self, size: u64) -> Result<Receiving, BlobError> {
        let reserved = self.reserve(size)?;
        let number = self.shared.imports.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.join(format!("import-{number}.{PARTIAL}"));
        Ok(Receiving {
            blobs: self.clone(),
            partial: Partial::create(path)?,
            reserved,
            hasher: Hasher::new(),
            written: 0,
        })
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, hash: &Hash) -> Result<File, BlobError> {
        File::open(self.path(hash)).map_err(unknown_if_missing)
    }

    /// The bytes of a small blob, from memory if it was read before; `None` if
    /// it is larger than 16 KiB.
    pub fn read_small(&self, hash: &Hash) -> Result<Option<Arc<[u8]>>, BlobError> {
        if let Some(known) = self.in_memory(hash) {
            return Ok(Some(known));
        }
        let mut bytes = Vec::new();
        self.open_blob(hash)?
            .take(SMALL_BYTES + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > SMALL_BYTES {
            return Ok(None);
        }
        let bytes: Arc<[u8]> = bytes.into();
        let mut small = self.shared.small();
        if small.len() == SMALL_KEPT {
            small.pop_front();
        }
        small.push_back((*hash, Arc::clone(&bytes)));
        Ok(Some(bytes))
    }

    /// The bytes of a small blob that was read before, without a look at the
    /// disk.
    pub fn in_memory(&self, hash: &Hash) -> Option<Arc<[u8]>> {
        let small = self.shared.small();
        let found = small.iter().rev().find(|(known, _)| known == hash);
        found.map(|(_, bytes)| Arc::clone(bytes))
    }

    /// Whether a blob is here, complete.
    pub fn has(&self, hash: &Hash) -> bool {
        self.path(hash).is_file()
    }

    /// A blob's size in bytes.
    pub fn size(&self, hash: &Hash) -> Result<u64, BlobError> {
        let metadata = fs::metadata(self.path(hash)).map_err(unknown_if_missing)?;
        Ok(metadata.len())
    }

    /// Keeps a blob until then, if that is later than what was said before;
    /// `None` stands for the default retention and changes nothing. It is not
    /// synced: after a power failure the default may hold again.
    pub fn keep_until(&self, hash: Hash, until: Option<WallMs>) -> Result<(), BlobError> {
        self.write_until(hash, until, false)
    }

    fn write_until(
        &self,
        hash: Hash,
        until: Option<WallMs>,
        durable: bool,
    ) -> Result<(), BlobError> {
        let Some(until) = until else {
            return Ok(());
        };
        let path = self.path(&hash);
        let named = path.with_extension(UNTIL);
        if read_until(&named).is_some_and(|before| before >= until) {
            return Ok(());
        }
        let number = self.shared.imports.fetch_add(1, Ordering::Relaxed);
        let partial = self.shared.dir.join(format!("until-{number}.{PARTIAL}"));
        let mut partial = Partial::create(partial)?;
        write!(partial.file, "{}", until.0)?;
        if durable {
            partial.file.sync_all()?;
        }
        partial.replace(&named)?;
        Ok(())
    }

    /// Removes a blob; open readers keep what they have.
    pub fn remove(&self, hash: &Hash) -> Result<u64, BlobError> {
        let path = self.path(hash);
        let size = self.size(hash)?;
        fs::remove_file(&path).map_err(unknown_if_missing)?;
        self.shared.small().retain(|(known, _)| known != hash);
        self.shared.used.fetch_sub(size, Ordering::Relaxed);
        match fs::remove_file(path.with_extension(UNTIL)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(size),
        }
    }

    /// Bytes used or reserved.
    pub fn used_bytes(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Removes what has expired by `now` and nothing refers to.
    pub fn collect(
        &self,
        now: WallMs,
        is_referenced: impl Fn(&Hash) -> bool,
    ) -> Result<Collected, BlobError> {
        let mut collected = Collected::default();
        for path in self.files()? {
            let Some(hash) = hash_of(&path) else {
                continue;
            };
            if self.expires(&path)? <= now && !is_referenced(&hash) {
                collected.bytes += self.remove(&hash)?;
                collected.blobs += 1;
            }
        }
        Ok(collected)
    }

    fn expires(&self, path: &Path) -> io::Result<WallMs> {
        if let Some(until) = read_until(&path.with_extension(UNTIL)) {
            return Ok(until);
        }
        let written = fs::metadata(path)?.modified()?;
        let kept = written
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_add(self.shared.config.retention);
        Ok(WallMs(u64::try_from(kept.as_millis()).unwrap_or(u64::MAX)))
    }

    fn settle(
        &self,
        partial: Partial,
        reserved: Reserved,
        hash: Hash,
        until: Option<WallMs>,
    ) -> Result<(), BlobError> {
        // Retention counts from when a blob is complete, also for a clone.
        let now = FileTimes::new().set_modified(SystemTime::now());
        partial.file.set_times(now)?;
        partial.file.sync_all()?;
        let path = self.path(&hash);
        self.make_folder_of(&path)?;
        // The time is there before the blob is, so that no crash leaves a blob
        // with less retention than was promised.
        self.write_until(hash, until, true)?;
        if path.is_file() {
            return Ok(());
        }
        if partial.place(&path)? {
            reserved.keep();
        }
        if let Some(dir) = path.parent() {
            sync_dir(dir)?;
        }
        Ok(())
    }

    /// Makes the folder in which `path` lies, durably.
    fn make_folder_of(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent().filter(|dir| !dir.is_dir()) {
            create_private_dir(dir)?;
            sync_dir(&self.shared.dir)?;
        }
        Ok(())
    }

    fn reserve(&self, size: u64) -> Result<Reserved, BlobError> {
        let quota = self.shared.config.quota_bytes;
        let add = |used: u64| used.checked_add(size).filter(|sum| *sum <= quota);
        self.shared
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|used| BlobError::QuotaExceeded {
                wanted: size,
                used,
                quota,
            })?;
        Ok(Reserved {
            shared: Arc::clone(&self.shared),
            size,
        })
    }

    fn path(&self, hash: &Hash) -> PathBuf {
        let hex = hash.to_hex();
        self.shared.dir.join(&hex[..2]).join(&hex[2..])
    }

    /// All files, in the folder itself and those below it.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut dirs = vec![self.shared.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    dirs.push(entry.path());
                } else {
                    files.push(entry.path());
                }
            }
        }
        Ok(files)
    }
}

/// A blob that is coming in. Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    blobs: Blobs,
    partial: Partial,
    reserved: Reserved,
    hash: Hash,
}

impl Incoming {
    /// The file to write into; writing past the size fails the commit.
    pub const fn file(&self) -> &File {
        &self.partial.file
    }

    /// The same, for sequential writing.
    pub const fn file_mut(&mut self) -> &mut File {
        &mut self.partial.file
    }

    /// The blob's hash.
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Completes the blob after reading it all once more and checking its hash.
    pub fn commit(mut self, until: Option<WallMs>) -> Result<(), BlobError> {
        use std::io::Seek;
        self.partial.file.rewind()?;
        let hash = hash_exactly(&mut self.partial.file, self.reserved.size, None)?;
        if hash != self.hash {
            return Err(BlobError::Mismatch);
        }
        self.commit_verified(until)
    }

    /// Completes a blob whose every byte the caller has verified.
    pub fn commit_verified(self, until: Option<WallMs>) -> Result<(), BlobError> {
        if self.partial.file.metadata()?.len() != self.reserved.size {
            return Err(BlobError::Mismatch);
        }
        self.blobs
            .settle(self.partial, self.reserved, self.hash, until)
    }
}

/// A blob that is being received in order and named at its end. Dropped
/// without a commit, it leaves nothing.
#[derive(Debug)]
pub struct Receiving {
    blobs: Blobs,
    partial: Partial,
    reserved: Reserved,
    hasher: Hasher,
    written: u64,
}

impl Receiving {
    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let written = self.written + bytes.len() as u64;
        if let Some(more) = written.checked_sub(self.reserved.size) {
            self.reserved.grow(self.blobs.reserve(more)?);
        }
        self.hasher.update(bytes);
        self.partial
            .file
            .write_all(bytes)
            .map_err(|error| no_room(error, written))?;
        self.written = written;
        Ok(())
    }

    /// Completes the blob and names it; its size must be what was reserved.
    pub fn commit(self, until: Option<WallMs>) -> Result<(Hash, u64), BlobError> {
        let hash = self.hasher.finalize();
        if self.written != self.reserved.size {
            return Err(BlobError::Mismatch);
        }
        if self.blobs.has(&hash) {
            self.blobs.keep_until(hash, until)?;
        } else {
            self.blobs
                .settle(self.partial, self.reserved, hash, until)?;
        }
        Ok((hash, self.written))
    }

    /// The hash of what came so far.
    pub fn hash(&self) -> Hash {
        self.hasher.finalize()
    }
}

/// Bytes counted against the quota, given back unless kept.
#[derive(Debug)]
struct Reserved {
    shared: Arc<Shared>,
    size: u64,
}

impl Reserved {
    fn grow(&mut self, mut more: Self) {
        self.size += more.size;
        more.size = 0;
    }

    fn keep(mut self) {
        self.size = 0;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A file under construction, removed unless it gets its name.
#[derive(Debug)]
struct Partial {
    file: File,
    path: Option<PathBuf>,
}

impl Partial {
    fn create(path: PathBuf) -> Result<Self, BlobError> {
        match private_file().create_new(true).open(&path) {
            Ok(file) => Ok(Self {
                file,
                path: Some(path),
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(BlobError::Incoming),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts it in its place, and takes that of what was there.
    fn replace(mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, to)?;
        }
        self.path = None;
        Ok(())
    }

    /// Puts it in its place. Whether nobody else had put the same there meanwhile.
    fn place(mut self, to: &Path) -> io::Result<bool> {
        let Some(path) = &self.path else {
            return Ok(false);
        };
        match renameat_with(CWD, path, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Its file goes when it is dropped.
            Err(rustix::io::Errno::EXIST) => return Ok(false),
            // Not every file system can; the bytes are the same.
            Err(_) => fs::rename(path, to)?,
        }
        self.path = None;
        Ok(true)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The next start removes what is left.
            let _ = fs::remove_file(path);
        }
    }
}

/// Hashes exactly `size` bytes of `source`, copying them where asked.
fn hash_exactly(
    source: &mut File,
    size: u64,
    mut copy: Option<&mut File>,
) -> Result<Hash, BlobError> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = 0u64;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        done += read as u64;
        if done > size {
            return Err(BlobError::Mismatch);
        }
        hasher.update(&buffer[..read]);
        if let Some(copy) = copy.as_deref_mut() {
            copy.write_all(&buffer[..read])
                .map_err(|error| no_room(error, size))?;
        }
    }
    if done == size {
        Ok(hasher.finalize())
    } else {
        Err(BlobError::Mismatch)
    }
}

fn no_room(error: io::Error, size: u64) -> BlobError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::NoRoom(size),
        _ => error.into(),
    }
}

fn unknown_if_missing(error: io::Error) -> BlobError {
    if error.kind() == io::ErrorKind::NotFound {
        BlobError::Unknown
    } else {
        error.into()
    }
}

fn read_until(path: &Path) -> Option<WallMs> {
    fs::read_to_string(path).ok()?.parse().ok().map(WallMs)
}

/// The hash that a path names, if it names one.
fn hash_of(path: &Path) -> Option<Hash> {
    let rest = path.file_name()?.to_str()?;
    let first = path.parent()?.file_name()?.to_str()?;
    Hash::from_hex(format!("{first}{rest}")).ok()
}
