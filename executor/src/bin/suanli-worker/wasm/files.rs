//! The files of one command: a tree in memory, which nothing of the host is in.
//!
//! `/in` holds the job's files, read from the descriptors that were passed and
//! never changed; `/out` and `/tmp` hold what the program writes, which counts
//! as its memory. Standard output and error are kept beside the tree, each up
//! to its cap: who writes past that is ended, so that the client hears of it.
//!
//! Names, numbers and times of files follow from the job alone, so a program
//! sees the same everywhere. Where the standard is silent a call fails as it
//! does on Linux. What fails here and not by the program's doing ends it, since
//! it would go on elsewhere. Absent: links, owners, permissions, clocks.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    ops::Bound,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use suanli_executor::{
    command::{self, Command},
    limits::{COMMAND_NODES_MAX, COMMAND_OPEN_MAX, NAME_BYTES_MAX, PATH_DEPTH_MAX},
};

use super::{Errno, Stop};

/// The root folder, which every path of a program starts from.
pub(super) const ROOT: u32 = 3;
/// The nodes that are there from the start have the numbers of their descriptors.
const ROOT_NODE: NodeId = 3;
/// The folder whose files come back.
const OUT: &str = "out";

/// Why a call gives nothing.
#[derive(Debug)]
pub(super) enum Refused {
    /// The program is told, and goes on.
    Errno(Errno),
    /// It could not pay for it.
    NoFuel,
    /// The program is ended.
    Stop(Stop),
}

impl From<Stop> for Refused {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

type Answer<T> = Result<T, Refused>;
type NodeId = usize;

/// All files and folders, and which are open.
pub(super) struct Files {
    nodes: BTreeMap<NodeId, Node>,
    next: NodeId,
    open: BTreeMap<u32, Open>,
    /// Bytes of written files. Streams have caps of their own: a program that is
    /// out of memory can still say so.
    bytes: u64,
    /// What files and linear memory may be together, less the latter.
    bytes_max: u64,
    /// Folders that there are.
    folders: u64,
}

struct Node {
    content: Content,
    /// The folder that names it; the root names itself.
    parent: Option<NodeId>,
    opened: usize,
}

enum Content {
    Folder(Folder),
    Input(Input),
    Written(Vec<u8>),
    Stream {
        name: &'static str,
        bytes: Vec<u8>,
        bytes_max: u64,
    },
}

/// What a folder names. A node has one name, so its number tells entries apart
/// for good: a listing goes on behind it, whatever was removed meanwhile.
#[derive(Default)]
struct Folder {
    by_name: BTreeMap<Arc<str>, NodeId>,
    by_node: BTreeMap<NodeId, Arc<str>>,
    writable: bool,
}

impl Folder {
    fn put(&mut self, name: &str, node: NodeId) {
        let name: Arc<str> = name.into();
        self.by_name.insert(Arc::clone(&name), node);
        self.by_node.insert(node, name);
    }

    fn remove(&mut self, name: &str) -> Option<NodeId> {
        let node = self.by_name.remove(name)?;
        self.by_node.remove(&node);
        Some(node)
    }
}

/// Where a path leads: a name in a folder, or the folder itself.
struct Place<'a> {
    folder: NodeId,
    name: Option<&'a str>,
    /// It ends as only paths of folders do.
    is_folder: bool,
}

/// An input of the job.
#[derive(Clone)]
pub(super) struct Input {
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
}

struct Open {
    node: NodeId,
    at: u64,
    append: bool,
    write: bool,
}

/// What a program may know of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Stream = 0,
    Folder = 3,
    File = 4,
}

/// How a path is opened.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Opening {
    pub(super) create: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
    pub(super) folder: bool,
    pub(super) append: bool,
    pub(super) write: bool,
}

/// Where a seek counts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whence {
    Start,
    Here,
    End,
}

impl Files {
    /// The tree before the program starts.
    pub(super) fn new(command: &Command, inputs: &[Input]) -> Answer<Self> {
        let mut files = Self {
            nodes: BTreeMap::new(),
            next: 0,
            open: BTreeMap::new(),
            bytes: 0,
            bytes_max: command.memory_max,
            folders: 0,
        };
        let input = |index: u32| {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            inputs.get(index).cloned().ok_or(Errno::Io)
        };
        let stdin = match command.stdin {
            Some(index) => Content::Input(input(index)?),
            None => Content::Written(Vec::new()),
        };
        let stream = |name, bytes_max| Content::Stream {
            name,
            bytes: Vec::new(),
            bytes_max,
        };
        let standard = [
            stdin,
            stream(command::STDOUT, command.stdout_max),
            stream(command::STDERR, command.stderr_max),
            folder(false),
        ];
        for (number, content) in (0..).zip(standard) {
            let write = number != 0 && number != ROOT;
            let node = files.add(content)?;
            files.hold(number, node, false, write);
        }
        if let Some(root) = files.nodes.get_mut(&ROOT_NODE) {
            root.parent = Some(ROOT_NODE);
        }
        for (name, writable) in [("in", false), (OUT, true), ("tmp", true)] {
            let node = files.add(folder(writable))?;
            files.link(ROOT_NODE, name, node)?;
        }
        let within = files.find(ROOT_NODE, "in")?;
        for file in command.files.iter() {
            files.add_input(within, &file.path, input(file.input)?)?;
        }
        Ok(files)
    }

    /// Bytes of files that the program has written.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Folders that there are: the longest way up to the root.
    pub(super) const fn folders(&self) -> u64 {
        self.folders
    }

    /// Linear memory has grown: so much is left for what is kept here.
    pub(super) const fn set_bytes_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// Whether this is standard error, whatever number the program gave it.
    pub(super) fn is_stderr(&self, number: u32) -> bool {
        self.node_of(number).is_ok_and(|node| node == 2)
    }

    /// What was written to standard output (1) or error (2), also if the
    /// program has closed it.
    pub(super) fn stream(&self, number: NodeId) -> &[u8] {
        match self.nodes.get(&number).map(|node| &node.content) {
            Some(Content::Stream { bytes, .. }) => bytes,
            Some(Content::Folder(_) | Content::Input(_) | Content::Written(_)) | None => &[],
        }
    }

    /// A file of `/out`, if the program made it.
    pub(super) fn output(&self, name: &str) -> Option<&[u8]> {
        let out = self.find(ROOT_NODE, OUT).ok()?;
        let node = self.find(out, name).ok()?;
        match &self.nodes.get(&node)?.content {
            Content::Written(bytes) => Some(bytes),
            Content::Folder(_) | Content::Input(_) | Content::Stream { .. } => None,
        }
    }

    // ---- descriptors --------------------------------------------------

    /// Bytes that can be read where the last read ended, or from `at` on.
    pub(super) fn left(&self, number: u32, at: Option<u64>) -> Answer<u64> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        let node = self.nodes.get(&open.node).ok_or(Errno::Io)?;
        match &node.content {
            Content::Folder(_) => Err(Errno::IsFolder.into()),
            Content::Stream { .. } if at.is_some() => Err(Errno::NoSeek.into()),
            Content::Stream { .. } => Err(Errno::BadDescriptor.into()),
            Content::Input(_) | Content::Written(_) => {
                let from = at.unwrap_or(open.at);
                Ok(self.size_of(open.node).saturating_sub(from))
            }
        }
    }

    /// Reads where the last read ended, or at `at`; so many bytes came.
    pub(super) fn read(&mut self, number: u32, at: Option<u64>, into: &mut [u8]) -> Answer<usize> {
        let left = usize::try_from(self.left(number, at)?).unwrap_or(usize::MAX);
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        let node = self.nodes.get(&open.node).ok_or(Errno::Io)?;
        let (from, count) = (at.unwrap_or(open.at), left.min(into.len()));
        let into = &mut into[..count];
        match &node.content {
            Content::Input(input) => {
                let read = input.file.read_exact_at(into, from);
                read.map_err(|error| Stop::Host(format!("reading an input: {error}")))?;
            }
            Content::Written(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let rest = bytes.get(from..).unwrap_or_default();
                into.copy_from_slice(&rest[..count]);
            }
            Content::Folder(_) | Content::Stream { .. } => return Err(Errno::Io.into()),
        }
        if at.is_none() {
            self.advance(number, from, count);
        }
        Ok(count)
    }

    /// Whether there may be writes, at a place of the program's choice too.
    pub(super) fn check_write(&self, number: u32, at: Option<u64>) -> Answer<()> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        match self.nodes.get(&open.node).map(|node| &node.content) {
            Some(Content::Stream { .. }) if at.is_some() => Err(Errno::NoSeek.into()),
            Some(Content::Stream { .. } | Content::Written(_)) if open.write => Ok(()),
            Some(_) | None => Err(Errno::BadDescriptor.into()),
        }
    }

    /// Bytes by which a write of so many lets a file grow.
    pub(super) fn growth(&self, number: u32, at: Option<u64>, count: u64) -> Answer<u64> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        let size = self.size_of(open.node);
        let end = self.begin_of(open, at).checked_add(count);
        Ok(end.ok_or(Errno::FileTooLarge)?.saturating_sub(size))
    }

    /// Where a write begins.
    fn begin_of(&self, open: &Open, at: Option<u64>) -> u64 {
        match self.nodes.get(&open.node).map(|node| &node.content) {
            Some(Content::Written(_)) if !open.append => at.unwrap_or(open.at),
            _ => self.size_of(open.node),
        }
    }

    /// Writes where the last write ended, or at `at`. Nothing at all changes
    /// nothing.
    pub(super) fn write(&mut self, number: u32, at: Option<u64>, what: &[u8]) -> Answer<()> {
        self.check_write(number, at)?;
        if what.is_empty() {
            return Ok(());
        }
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        let (id, begin) = (open.node, self.begin_of(open, at));
        let end = begin.checked_add(length(what)).ok_or(Errno::FileTooLarge)?;
        if end > self.size_of(id) {
            self.resize(id, end)?;
        }
        let node = self.nodes.get_mut(&id).ok_or(Errno::Io)?;
        let (Content::Written(bytes) | Content::Stream { bytes, .. }) = &mut node.content else {
            return Err(Errno::Io.into());
        };
        let begin_at = usize::try_from(begin).map_err(|_| Errno::FileTooLarge)?;
        bytes[begin_at..][..what.len()].copy_from_slice(what);
        if at.is_none() {
            self.advance(number, begin, what.len());
        }
        Ok(())
    }

    /// Where the next read or write of a file happens, after this.
    pub(super) fn seek(&mut self, number: u32, delta: i64, whence: Whence) -> Answer<u64> {
        let node = self.node_of(number)?;
        if self.stat_of(node)?.kind != Kind::File {
            return Err(Errno::NoSeek.into());
        }
        let size = self.size_of(node);
        let open = self.open.get_mut(&number).ok_or(Errno::BadDescriptor)?;
        let base = match whence {
            Whence::Start => 0,
            Whence::Here => open.at,
            Whence::End => size,
        };
        open.at = base.checked_add_signed(delta).ok_or(Errno::Invalid)?;
        Ok(open.at)
    }

    pub(super) fn stat(&self, number: u32) -> Answer<Stat> {
        self.stat_of(self.node_of(number)?)
    }

    /// Whether writes go to the end of the file, and whether there may be any.
    pub(super) fn modes(&self, number: u32) -> Answer<(bool, bool)> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        Ok((open.append, open.write))
    }

    pub(super) fn set_append(&mut self, number: u32, append: bool) -> Answer<()> {
        let open = self.open.get_mut(&number).ok_or(Errno::BadDescriptor)?;
        open.append = append;
        Ok(())
    }

    /// Bytes by which a file grows that gets this size, if it may be given one.
    pub(super) fn check_size(&self, number: u32, size: u64) -> Answer<u64> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        match self.nodes.get(&open.node).map(|node| &node.content) {
            Some(Content::Written(_)) if open.write => {
                Ok(size.saturating_sub(self.size_of(open.node)))
            }
            Some(_) | None => Err(Errno::Invalid.into()),
        }
    }

    /// Cuts a file, or lets it grow by zeros.
    pub(super) fn set_size(&mut self, number: u32, size: u64) -> Answer<()> {
        self.check_size(number, size)?;
        self.resize(self.node_of(number)?, size)
    }

    pub(super) fn close(&mut self, number: u32) -> Answer<()> {
        let open = self.open.remove(&number).ok_or(Errno::BadDescriptor)?;
        if let Some(node) = self.nodes.get_mut(&open.node) {
            node.opened -= 1;
        }
        self.forget(open.node);
        Ok(())
    }

    /// Gives an open file another number, whose file is closed.
    pub(super) fn renumber(&mut self, from: u32, to: u32) -> Answer<()> {
        if !self.open.contains_key(&from) || !self.open.contains_key(&to) {
            return Err(Errno::BadDescriptor.into());
        }
        if from != to {
            self.close(to)?;
            if let Some(open) = self.open.remove(&from) {
                self.open.insert(to, open);
            }
        }
        Ok(())
    }

    /// The entry of a folder that follows a cookie, with its own; 0 is before
    /// the first. A cookie is the entry's number; those of the two that every
    /// folder has are no other node's.
    pub(super) fn entry(&self, number: u32, after: u64) -> Answer<Option<(&str, Stat, u64)>> {
        let own = self.node_of(number)?;
        let Content::Folder(folder) = &self.nodes.get(&own).ok_or(Errno::Io)?.content else {
            return Err(Errno::NotFolder.into());
        };
        let parent = self.nodes.get(&own).and_then(|node| node.parent);
        match after {
            0 => return Ok(Some((".", self.stat_of(own)?, 1))),
            1 => return Ok(Some(("..", self.stat_of(parent.unwrap_or(own))?, 2))),
            _ => {}
        }
        let last = NodeId::try_from(after - 1).unwrap_or(NodeId::MAX);
        let rest = (Bound::Excluded(last), Bound::Unbounded);
        let Some((node, name)) = folder.by_node.range(rest).next() else {
            return Ok(None);
        };
        let stat = self.stat_of(*node)?;
        Ok(Some((name, stat, stat.number)))
    }

    // ---- paths --------------------------------------------------------

    pub(super) fn open(&mut self, from: u32, path: &str, how: Opening) -> Answer<u32> {
        if self.open.len() >= COMMAND_OPEN_MAX {
            return Err(Errno::TooManyOpen.into());
        }
        let place = self.walk(from, path)?;
        let node = match (self.found(&place), place.name) {
            (Ok(_), _) if how.create && how.exclusive => return Err(Errno::Exists.into()),
            (Ok(node), _) => node,
            (Err(_), Some(_)) if how.create && place.is_folder => {
                return Err(Errno::IsFolder.into());
            }
            (Err(_), Some(name)) if how.create && !how.folder => {
                self.make(place.folder, name, Content::Written(Vec::new()))?
            }
            (Err(refused), _) => return Err(refused),
        };
        let content = &self.nodes.get(&node).ok_or(Errno::Io)?.content;
        match content {
            Content::Folder(_) if how.write || how.truncate => {
                return Err(Errno::IsFolder.into());
            }
            Content::Folder(_) => {}
            _ if how.folder || place.is_folder => return Err(Errno::NotFolder.into()),
            Content::Input(_) if how.write || how.truncate => return Err(Errno::ReadOnly.into()),
            Content::Input(_) | Content::Written(_) | Content::Stream { .. } => {}
        }
        if how.truncate {
            self.resize(node, 0)?;
        }
        let free = (0..)
            .zip(self.open.keys())
            .find(|(free, used)| free != *used);
        let all = u32::try_from(self.open.len()).map_err(|_| Errno::TooManyOpen)?;
        let number = free.map_or(all, |(free, _)| free);
        self.hold(number, node, how.append, how.write);
        Ok(number)
    }

    pub(super) fn stat_path(&self, from: u32, path: &str) -> Answer<Stat> {
        let place = self.walk(from, path)?;
        self.stat_of(self.found(&place)?)
    }

    pub(super) fn make_folder(&mut self, from: u32, path: &str) -> Answer<()> {
        let place = self.walk(from, path)?;
        let name = place.name.ok_or(Errno::Exists)?;
        self.make(place.folder, name, folder(true)).map(|_| ())
    }

    /// Removes a file, or an empty folder.
    pub(super) fn remove(&mut self, from: u32, path: &str, is_folder: bool) -> Answer<()> {
        let place = self.walk(from, path)?;
        let name = place.name.ok_or(Errno::Invalid)?;
        let node = self.found(&place)?;
        self.check_removal(node, is_folder)?;
        self.unlink(place.folder, name)
    }

    fn check_removal(&self, node: NodeId, is_folder: bool) -> Answer<()> {
        match &self.nodes.get(&node).ok_or(Errno::Io)?.content {
            Content::Folder(_) if !is_folder => Err(Errno::IsFolder.into()),
            Content::Folder(folder) if !folder.by_name.is_empty() => Err(Errno::NotEmpty.into()),
            Content::Folder(_) => Ok(()),
            _ if is_folder => Err(Errno::NotFolder.into()),
            Content::Input(_) | Content::Written(_) | Content::Stream { .. } => Ok(()),
        }
    }

    pub(super) fn rename(&mut self, from: (u32, &str), to: (u32, &str)) -> Answer<()> {
        let (old, new) = (self.walk(from.0, from.1)?, self.walk(to.0, to.1)?);
        let old_name = old.name.ok_or(Errno::Invalid)?;
        let new_name = new.name.ok_or(Errno::Invalid)?;
        let node = self.found(&old)?;
        let is_folder = self.is_folder(node);
        if new.is_folder && !is_folder {
            return Err(Errno::NotFolder.into());
        }
        self.entries_of(old.folder)?;
        self.entries_of(new.folder)?;
        if self.is_within(new.folder, node) {
            return Err(Errno::Invalid.into());
        }
        if let Ok(target) = self.find(new.folder, new_name) {
            if target == node {
                return Ok(());
            }
            self.check_removal(target, is_folder)?;
            self.unlink(new.folder, new_name)?;
        }
        self.entries_of(old.folder)?.remove(old_name);
        self.link(new.folder, new_name, node)
    }

    // ---- nodes --------------------------------------------------------

    fn node_of(&self, number: u32) -> Answer<NodeId> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        Ok(open.node)
    }

    fn find(&self, folder: NodeId, name: &str) -> Answer<NodeId> {
        match self.nodes.get(&folder).map(|node| &node.content) {
            Some(Content::Folder(folder)) => {
                let found = folder.by_name.get(name).copied();
                found.ok_or_else(|| Errno::NotFound.into())
            }
            Some(_) | None => Err(Errno::NotFolder.into()),
        }
    }

    /// Follows a path to the folder of its last name.
    fn walk<'a>(&self, from: u32, path: &'a str) -> Answer<Place<'a>> {
        if path.is_empty() {
            return Err(Errno::NotFound.into());
        }
        if path.starts_with('/') {
            return Err(Errno::NotCapable.into());
        }
        let mut above = vec![self.folder_of(self.node_of(from)?)?];
        let mut names = path.split('/').filter(|name| !matches!(*name, "" | "."));
        let mut last = names.next();
        while let Some(name) = last {
            let next = names.next();
            if name.len() > NAME_BYTES_MAX || above.len() > PATH_DEPTH_MAX {
                return Err(Errno::NameTooLong.into());
            }
            if name == ".." {
                above.pop();
                if above.is_empty() {
                    return Err(Errno::NotCapable.into());
                }
            } else if next.is_some() {
                let inside = above.last().copied().ok_or(Errno::NotCapable)?;
                above.push(self.folder_of(self.find(inside, name)?)?);
            } else {
                break;
            }
            last = next;
        }
        Ok(Place {
            folder: above.last().copied().ok_or(Errno::NotCapable)?,
            name: last,
            is_folder: path.ends_with('/') || path.ends_with("/."),
        })
    }

    /// What is at a place now.
    fn found(&self, place: &Place<'_>) -> Answer<NodeId> {
        match place.name {
            None => Ok(place.folder),
            Some(name) => {
                let node = self.find(place.folder, name)?;
                if place.is_folder {
                    return self.folder_of(node);
                }
                Ok(node)
            }
        }
    }

    fn is_folder(&self, node: NodeId) -> bool {
        matches!(
            self.nodes.get(&node).map(|node| &node.content),
            Some(Content::Folder(_))
        )
    }

    /// The node itself, if it is a folder.
    fn folder_of(&self, node: NodeId) -> Answer<NodeId> {
        if self.is_folder(node) {
            return Ok(node);
        }
        Err(Errno::NotFolder.into())
    }

    /// A folder's entries, if they may be changed. One that was removed while it
    /// was open stays empty.
    fn entries_of(&mut self, folder: NodeId) -> Answer<&mut Folder> {
        let node = self.nodes.get_mut(&folder).ok_or(Errno::Io)?;
        match &mut node.content {
            Content::Folder(folder) if folder.writable => {
                node.parent.ok_or(Errno::NotFound)?;
                Ok(folder)
            }
            Content::Folder(_) => Err(Errno::ReadOnly.into()),
            Content::Input(_) | Content::Written(_) | Content::Stream { .. } => {
                Err(Errno::NotFolder.into())
            }
        }
    }

    fn make(&mut self, parent: NodeId, name: &str, content: Content) -> Answer<NodeId> {
        if self.find(parent, name).is_ok() {
            return Err(Errno::Exists.into());
        }
        self.entries_of(parent)?;
        let node = self.add(content)?;
        self.link(parent, name, node)?;
        Ok(node)
    }

    fn add(&mut self, content: Content) -> Answer<NodeId> {
        if self.nodes.len() >= COMMAND_NODES_MAX {
            return Err(Errno::NoSpace.into());
        }
        let id = self.next;
        self.next += 1;
        self.folders += u64::from(matches!(content, Content::Folder(_)));
        let node = Node {
            content,
            parent: None,
            opened: 0,
        };
        self.nodes.insert(id, node);
        Ok(id)
    }

    fn link(&mut self, parent: NodeId, name: &str, node: NodeId) -> Answer<()> {
        let linked = self.nodes.get_mut(&node).ok_or(Errno::Io)?;
        linked.parent = Some(parent);
        match self.nodes.get_mut(&parent).map(|node| &mut node.content) {
            Some(Content::Folder(folder)) => {
                folder.put(name, node);
                Ok(())
            }
            Some(_) | None => Err(Errno::NotFolder.into()),
        }
    }

    fn unlink(&mut self, parent: NodeId, name: &str) -> Answer<()> {
        let entries = self.entries_of(parent)?;
        let node = entries.remove(name).ok_or(Errno::NotFound)?;
        if let Some(gone) = self.nodes.get_mut(&node) {
            gone.parent = None;
        }
        self.forget(node);
        Ok(())
    }

    /// Frees a node that nothing names and nothing has open.
    fn forget(&mut self, node: NodeId) {
        let Entry::Occupied(entry) = self.nodes.entry(node) else {
            return;
        };
        if entry.get().parent.is_some() || entry.get().opened > 0 {
            return;
        }
        // A standard stream comes back even if the program closed it.
        if let Content::Stream { .. } = entry.get().content {
            return;
        }
        match entry.remove().content {
            Content::Written(bytes) => self.bytes -= length(&bytes),
            Content::Folder(_) => self.folders -= 1,
            Content::Input(_) | Content::Stream { .. } => {}
        }
    }

    fn add_input(&mut self, within: NodeId, path: &str, input: Input) -> Answer<()> {
        let mut parent = within;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            let known = self.find(parent, name).ok();
            parent = match (known, names.peek()) {
                (Some(node), Some(_)) => node,
                (None, Some(_)) => {
                    let node = self.add(folder(false))?;
                    self.link(parent, name, node)?;
                    node
                }
                (_, None) => {
                    let node = self.add(Content::Input(input))?;
                    return self.link(parent, name, node);
                }
            };
        }
        Ok(())
    }

    fn hold(&mut self, number: u32, node: NodeId, append: bool, write: bool) {
        if let Some(held) = self.nodes.get_mut(&node) {
            held.opened += 1;
        }
        let open = Open {
            node,
            at: 0,
            append,
            write,
        };
        self.open.insert(number, open);
    }

    fn advance(&mut self, number: u32, from: u64, by: usize) {
        if let Some(open) = self.open.get_mut(&number) {
            open.at = from.saturating_add(u64::try_from(by).unwrap_or(u64::MAX));
        }
    }

    fn stat_of(&self, id: NodeId) -> Answer<Stat> {
        let node = self.nodes.get(&id).ok_or(Errno::Io)?;
        Ok(Stat {
            number: u64::try_from(id).unwrap_or(u64::MAX).saturating_add(1),
            kind: match &node.content {
                Content::Folder(_) => Kind::Folder,
                Content::Stream { .. } => Kind::Stream,
                Content::Input(_) | Content::Written(_) => Kind::File,
            },
            bytes: self.size_of(id),
        })
    }

    fn size_of(&self, id: NodeId) -> u64 {
        match self.nodes.get(&id).map(|node| &node.content) {
            Some(Content::Input(input)) => input.bytes,
            Some(Content::Written(bytes) | Content::Stream { bytes, .. }) => length(bytes),
            Some(Content::Folder(_)) | None => 0,
        }
    }

    /// Changes the size of what was written, within the program's memory or the
    /// stream's cap.
    fn resize(&mut self, id: NodeId, size: u64) -> Answer<()> {
        let old = self.size_of(id);
        let node = self.nodes.get_mut(&id).ok_or(Errno::Io)?;
        let (bytes, counted) = match &mut node.content {
            Content::Written(bytes) => {
                let all = (self.bytes - old).checked_add(size);
                let all = all.filter(|all| *all <= self.bytes_max);
                (bytes, all.ok_or(Errno::NoSpace)?)
            }
            Content::Stream {
                name, bytes_max, ..
            } if size > *bytes_max => {
                return Err(Refused::Stop(Stop::OutputTooLarge {
                    name: (*name).to_owned(),
                    bytes_max: *bytes_max,
                }));
            }
            Content::Stream { bytes, .. } => (bytes, self.bytes),
            Content::Folder(_) | Content::Input(_) => return Err(Errno::ReadOnly.into()),
        };
        let size = usize::try_from(size).map_err(|_| Errno::FileTooLarge)?;
        let more = size.saturating_sub(bytes.len());
        let reserved = bytes.try_reserve(more);
        reserved.map_err(|error| Stop::Host(format!("keeping a file: {error}")))?;
        bytes.resize(size, 0);
        if size == 0 {
            // A cut file must give its memory back: it no longer counts.
            *bytes = Vec::new();
        } else if size < bytes.capacity() / 4 {
            bytes.shrink_to_fit();
        }
        self.bytes = counted;
        Ok(())
    }

    /// Whether a folder is another one, or lies somewhere below it.
    fn is_within(&self, folder: NodeId, other: NodeId) -> bool {
        let parent = |node: &NodeId| self.nodes.get(node)?.parent;
        let mut above = std::iter::successors(Some(folder), |node| {
            parent(node).filter(|_| *node != ROOT_NODE)
        });
        above.any(|node| node == other)
    }
}

fn folder(writable: bool) -> Content {
    Content::Folder(Folder {
        writable,
        ..Folder::default()
    })
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use suanli_executor::command::{InFile, OutFile};
    use suanli_protocol::wire::{List, Utf8};

    use super::*;

    fn files(memory_max: u64) -> Files {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let input = Input {
            file: Arc::new(file),
            bytes: 10,
        };
        let command = Command {
            module: 0,
            arguments: List::default(),
            variables: List::default(),
            stdin: Some(0),
            files: vec![InFile {
                path: Utf8::cut("a/digits"),
                input: 0,
            }]
            .try_into()
            .unwrap(),
            outputs: vec![OutFile {
                name: Utf8::cut("x"),
                bytes_max: 4,
            }]
            .try_into()
            .unwrap(),
            stdout_max: 8,
            stderr_max: 0,
            memory_max,
            fuel_max: 1,
            clock_ns: 0,
            seed: 0,
        };
        let Ok(files) = Files::new(&command, &[input]) else {
            panic!("the files were refused");
        };
        files
    }

    fn errno<T>(answer: Answer<T>) -> Errno {
        match answer {
            Err(Refused::Errno(errno)) => errno,
            Err(refused) => panic!("{refused:?}"),
            Ok(_) => panic!("it was done"),
        }
    }

    fn names(files: &Files, number: u32) -> Vec<String> {
        let mut names = Vec::new();
        let mut after = 0;
        while let Some((name, _, cookie)) = files.entry(number, after).unwrap() {
            names.push(name.to_owned());
            after = cookie;
        }
        names
    }

    const READ: Opening = Opening {
        create: false,
        exclusive: false,
        truncate: false,
        folder: false,
        append: false,
        write: false,
    };
    const WRITE: Opening = Opening {
        create: true,
        write: true,
        ..READ
    };

    #[test]
    fn inputs_are_read_and_never_changed() {
        let mut files = files(100);
        let mut bytes = [0; 6];
        assert_eq!(files.read(0, None, &mut bytes).unwrap(), 6);
        assert_eq!(files.read(0, None, &mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"6789");
        let digits = files.open(ROOT, "in/a/digits", READ).unwrap();
        assert_eq!(files.read(digits, Some(8), &mut bytes).unwrap(), 2);
        assert_eq!(
            errno(files.open(ROOT, "in/a/digits", WRITE)),
            Errno::ReadOnly
        );
        assert_eq!(errno(files.open(ROOT, "in/new", WRITE)), Errno::ReadOnly);
        assert_eq!(
            errno(files.remove(ROOT, "in/a/digits", false)),
            Errno::ReadOnly
        );
        let away = files.rename((ROOT, "in/a/digits"), (ROOT, "tmp/digits"));
        assert_eq!(errno(away), Errno::ReadOnly);
    }

    #[test]
    fn abuse_34_no_path_leads_out_of_the_tree() {
        let mut files = files(100);
        assert_eq!(
            errno(files.open(ROOT, "/etc/passwd", READ)),
            Errno::NotCapable
        );
        assert_eq!(
            errno(files.open(ROOT, "../etc/passwd", READ)),
            Errno::NotCapable
        );
        assert_eq!(
            errno(files.open(ROOT, "in/../../x", READ)),
            Errno::NotCapable
        );
        let inner = files.open(ROOT, "in/a", READ).unwrap();
        assert_eq!(
            errno(files.open(inner, "../../tmp", READ)),
            Errno::NotCapable
        );
        assert!(files.open(ROOT, "in/../tmp/./", READ).is_ok());
        assert_eq!(
            errno(files.open(ROOT, "in/a/digits/x", READ)),
            Errno::NotFolder
        );
        let deep = "in/".repeat(100);
        assert!(matches!(
            errno(files.open(ROOT, &deep, READ)),
            Errno::NotFound | Errno::NameTooLong
        ));
    }

    #[test]
    fn what_is_written_counts_and_what_is_removed_does_not() {
        let mut files = files(10);
        let file = files.open(ROOT, "tmp/f", WRITE).unwrap();
        files.write(file, None, b"12345678").unwrap();
        assert_eq!(errno(files.write(file, None, b"123")), Errno::NoSpace);
        assert_eq!(errno(files.set_size(file, u64::MAX)), Errno::NoSpace);
        assert_eq!(
            errno(files.write(file, Some(u64::MAX), b"1")),
            Errno::FileTooLarge
        );
        files.remove(ROOT, "tmp/f", false).unwrap();
        assert_eq!(files.bytes(), 8, "still open");
        files.close(file).unwrap();
        assert_eq!(files.bytes(), 0);
        let out = files.open(ROOT, "out/x", WRITE).unwrap();
        files.write(out, Some(2), b"ab").unwrap();
        assert_eq!(files.output("x"), Some(&b"\0\0ab"[..]));
        assert_eq!(files.output("y"), None);
    }

    #[test]
    fn a_stream_ends_its_program_at_the_cap() {
        let mut files = files(100);
        files.write(1, None, b"12345678").unwrap();
        let over = files.write(1, None, b"9");
        assert!(matches!(
            over,
            Err(Refused::Stop(Stop::OutputTooLarge { bytes_max: 8, .. }))
        ));
        files.close(1).unwrap();
        assert_eq!(files.stream(1), b"12345678");
    }

    #[test]
    fn folders_move_but_not_into_themselves() {
        let mut files = files(100);
        files.make_folder(ROOT, "tmp/a").unwrap();
        files.make_folder(ROOT, "tmp/a/b").unwrap();
        assert_eq!(
            errno(files.rename((ROOT, "tmp/a"), (ROOT, "tmp/a/b/c"))),
            Errno::Invalid
        );
        files.rename((ROOT, "tmp/a/b"), (ROOT, "out/b")).unwrap();
        assert_eq!(errno(files.remove(ROOT, "out", true)), Errno::NotEmpty);
        files.remove(ROOT, "tmp/a", true).unwrap();
        assert_eq!(errno(files.remove(ROOT, "tmp", true)), Errno::ReadOnly);
        let out = files.open(ROOT, "out", READ).unwrap();
        let names = names(&files, out);
        assert_eq!(names, [".", "..", "b"]);
        assert_eq!(errno(files.make_folder(ROOT, "out/b")), Errno::Exists);
    }

    #[test]
    fn files_and_descriptors_are_bounded() {
        let mut files = files(100);
        let mut last = Ok(0);
        for n in 0..COMMAND_NODES_MAX {
            last = files.open(ROOT, &format!("tmp/{n}"), WRITE);
            if let Ok(number) = last {
                files.close(number).unwrap();
            }
        }
        assert_eq!(errno(last), Errno::NoSpace);
        files.remove(ROOT, "tmp/1", false).unwrap();
        let opened = (0..COMMAND_OPEN_MAX).map(|_| files.open(ROOT, "tmp/0", READ));
        assert_eq!(errno(opened.last().unwrap()), Errno::TooManyOpen);
        // Nothing is made or cut that can't be opened.
        assert_eq!(errno(files.open(ROOT, "tmp/1", WRITE)), Errno::TooManyOpen);
        assert_eq!(errno(files.stat_path(ROOT, "tmp/1")), Errno::NotFound);
    }

    #[test]
    fn the_lowest_free_number_is_given() {
        let mut files = files(100);
        let numbers: Vec<_> = (0..3)
            .map(|_| files.open(ROOT, "in", READ).unwrap())
            .collect();
        assert_eq!(numbers, [4, 5, 6]);
        files.close(5).unwrap();
        files.close(0).unwrap();
        let numbers = [(); 3].map(|()| files.open(ROOT, "in", READ).unwrap());
        assert_eq!(numbers, [0, 5, 7]);
    }

    #[test]
    fn a_listing_goes_on_where_it_was_whatever_is_removed() {
        let mut files = files(100);
        for name in ["c", "a", "d", "b"] {
            files.make_folder(ROOT, &format!("tmp/{name}")).unwrap();
        }
        let tmp = files.open(ROOT, "tmp", READ).unwrap();
        let mut seen = Vec::new();
        let mut after = 0;
        while let Some((name, _, cookie)) = files.entry(tmp, after).unwrap() {
            let name = name.to_owned();
            // As `rm -r` does it: each is removed once it was seen.
            if !name.starts_with('.') {
                files.remove(tmp, &name, true).unwrap();
            }
            seen.push(name);
            after = cookie;
        }
        assert_eq!(seen, [".", "..", "c", "a", "d", "b"]);
        assert_eq!(names(&files, tmp), [".", ".."]);
        let (_, above, _) = files.entry(tmp, 1).unwrap().unwrap();
        assert_eq!(above, files.stat(ROOT).unwrap());
    }

    #[test]
    fn writing_nothing_changes_nothing() {
        let mut files = files(100);
        let file = files.open(ROOT, "tmp/f", WRITE).unwrap();
        files.write(file, Some(50), b"").unwrap();
        assert_eq!(files.stat(file).unwrap().bytes, 0);
        let reading = files.open(ROOT, "tmp/f", READ).unwrap();
        assert_eq!(errno(files.write(reading, None, b"")), Errno::BadDescriptor);
    }

    #[test]
    fn streams_have_no_places() {
        let mut files = files(100);
        assert_eq!(errno(files.write(1, Some(0), b"x")), Errno::NoSeek);
        assert_eq!(errno(files.left(1, Some(0))), Errno::NoSeek);
        assert_eq!(errno(files.left(1, None)), Errno::BadDescriptor);
        assert_eq!(errno(files.seek(1, 0, Whence::Here)), Errno::NoSeek);
        assert_eq!(
            files.left(0, Some(4)).unwrap(),
            6,
            "standard input is a file"
        );
    }

    #[test]
    fn paths_end_as_what_they_name() {
        let mut files = files(100);
        let file = files.open(ROOT, "tmp/f", WRITE).unwrap();
        files.make_folder(ROOT, "tmp/d/").unwrap();
        for path in ["tmp/f/", "tmp/f/.", "tmp/f/..", "tmp/f/x"] {
            assert_eq!(
                errno(files.stat_path(ROOT, path)),
                Errno::NotFolder,
                "{path}"
            );
            assert_eq!(
                errno(files.open(ROOT, path, READ)),
                Errno::NotFolder,
                "{path}"
            );
        }
        assert_eq!(errno(files.open(ROOT, "tmp/new/", WRITE)), Errno::IsFolder);
        assert_eq!(errno(files.open(ROOT, "tmp/new/", READ)), Errno::NotFound);
        assert_eq!(errno(files.remove(ROOT, "tmp/f/", false)), Errno::NotFolder);
        assert_eq!(
            errno(files.rename((ROOT, "tmp/f"), (ROOT, "tmp/new/"))),
            Errno::NotFolder
        );
        files.rename((ROOT, "tmp/d/"), (ROOT, "tmp/e/")).unwrap();
        assert_eq!(files.stat_path(ROOT, "tmp/e/.").unwrap().kind, Kind::Folder);
        assert_eq!(errno(files.stat_path(ROOT, "")), Errno::NotFound);
        assert_eq!(errno(files.open(ROOT, "", WRITE)), Errno::NotFound);
        files.close(file).unwrap();
    }

    #[test]
    fn making_what_exists_says_so_even_where_nothing_can_be_made() {
        let mut files = files(100);
        for path in [".", "./", "tmp", "tmp/", "in", "tmp/..", "in/a/digits"] {
            assert_eq!(
                errno(files.make_folder(ROOT, path)),
                Errno::Exists,
                "{path}"
            );
        }
        assert_eq!(errno(files.make_folder(ROOT, "new")), Errno::ReadOnly);
    }

    #[test]
    fn a_rename_replaces_only_its_like() {
        let mut files = files(100);
        let file = files.open(ROOT, "tmp/file", WRITE).unwrap();
        let other = files.open(ROOT, "tmp/other", WRITE).unwrap();
        files.write(other, None, b"other").unwrap();
        for folder in ["tmp/empty", "tmp/full", "tmp/full/x"] {
            files.make_folder(ROOT, folder).unwrap();
        }
        let mut rename = |from: &str, to: &str| files.rename((ROOT, from), (ROOT, to));
        assert_eq!(errno(rename("tmp/file", "tmp/empty")), Errno::IsFolder);
        assert_eq!(errno(rename("tmp/empty", "tmp/file")), Errno::NotFolder);
        assert_eq!(errno(rename("tmp/empty", "tmp/full")), Errno::NotEmpty);
        assert_eq!(errno(rename("tmp/full/x", "tmp/full")), Errno::NotEmpty);
        assert_eq!(errno(rename("tmp/full", "tmp/full/x")), Errno::Invalid);
        rename("tmp/full", "tmp/empty").unwrap();
        rename("tmp/other", "tmp/file").unwrap();
        assert_eq!(files.stat_path(ROOT, "tmp/file").unwrap().bytes, 5);
        assert!(files.stat_path(ROOT, "tmp/empty/x").is_ok());
        files.close(file).unwrap();
        let folders = files.folders();
        files.remove(ROOT, "tmp/empty/x", true).unwrap();
        assert_eq!(files.folders(), folders - 1);
    }

    #[test]
    fn a_removed_folder_takes_nothing_in() {
        let mut files = files(100);
        files.make_folder(ROOT, "tmp/d").unwrap();
        let folder = files.open(ROOT, "tmp/d", READ).unwrap();
        files.remove(ROOT, "tmp/d", true).unwrap();
        assert_eq!(errno(files.open(folder, "x", WRITE)), Errno::NotFound);
        assert_eq!(errno(files.make_folder(folder, "x")), Errno::NotFound);
        assert_eq!(names(&files, folder), [".", ".."]);
    }
}
