//! The files of one command: a tree in memory, which nothing of the host is in.
//!
//! `/in` holds the job's files, read from the descriptors that were passed and
//! never changed; `/out` and `/tmp` hold what the program writes, which counts
//! as its memory. Standard output and error are kept beside the tree, each up
//! to its cap: who writes past that is ended, so that the client hears of it.
//!
//! Names, numbers and times of files follow from the job alone, so a program
//! sees the same everywhere. Absent: links, owners, permissions, clocks.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
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
    /// The program is ended.
    Stop(Stop),
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
}

struct Node {
    content: Content,
    /// Whether a folder names it; the root names itself.
    linked: bool,
    opened: usize,
}

enum Content {
    Folder {
        entries: BTreeMap<String, NodeId>,
        writable: bool,
    },
    Input(Input),
    Written(Vec<u8>),
    Stream {
        name: &'static str,
        bytes: Vec<u8>,
        bytes_max: u64,
    },
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
            root.linked = true;
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

    /// Files and folders that there are: what a walk through all of them costs.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.nodes.len()).unwrap_or(u64::MAX)
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
            Some(Content::Folder { .. } | Content::Input(_) | Content::Written(_)) | None => &[],
        }
    }

    /// A file of `/out`, if the program made it.
    pub(super) fn output(&self, name: &str) -> Option<&[u8]> {
        let out = self.find(ROOT_NODE, OUT).ok()?;
        let node = self.find(out, name).ok()?;
        match &self.nodes.get(&node)?.content {
            Content::Written(bytes) => Some(bytes),
            Content::Folder { .. } | Content::Input(_) | Content::Stream { .. } => None,
        }
    }

    // ---- descriptors --------------------------------------------------

    /// Reads where the last read ended, or at `at`; so many bytes came.
    pub(super) fn read(&mut self, number: u32, at: Option<u64>, into: &mut [u8]) -> Answer<usize> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        let from = at.unwrap_or(open.at);
        let node = self.nodes.get(&open.node).ok_or(Errno::Io)?;
        let count = match &node.content {
            Content::Folder { .. } => return Err(Errno::IsFolder.into()),
            Content::Stream { .. } => return Err(Errno::BadDescriptor.into()),
            Content::Written(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let rest = bytes.get(from..).unwrap_or_default();
                let count = rest.len().min(into.len());
                into[..count].copy_from_slice(&rest[..count]);
                count
            }
            Content::Input(input) => input.read(from, into)?,
        };
        if at.is_none() {
            self.advance(number, from, count);
        }
        Ok(count)
    }

    /// Writes where the last write ended, or at `at`.
    pub(super) fn write(&mut self, number: u32, at: Option<u64>, what: &[u8]) -> Answer<()> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        if !open.write {
            return Err(Errno::BadDescriptor.into());
        }
        let (id, append, here) = (open.node, open.append, at.unwrap_or(open.at));
        let size = self.size_of(id);
        let node = self.nodes.get_mut(&id).ok_or(Errno::Io)?;
        let begin = match &mut node.content {
            Content::Folder { .. } | Content::Input(_) => return Err(Errno::BadDescriptor.into()),
            Content::Stream {
                name, bytes_max, ..
            } => {
                let wanted = size.saturating_add(length(what));
                if wanted > *bytes_max {
                    return Err(Refused::Stop(Stop::OutputTooLarge {
                        name: (*name).to_owned(),
                        bytes_max: *bytes_max,
                    }));
                }
                size
            }
            Content::Written(_) if append => size,
            Content::Written(_) => here,
        };
        let end = begin.checked_add(length(what)).ok_or(Errno::FileTooLarge)?;
        if end > size {
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

    /// Cuts a file, or lets it grow by zeros.
    pub(super) fn set_size(&mut self, number: u32, size: u64) -> Answer<()> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        let id = open.node;
        let is_file = matches!(
            self.nodes.get(&id).map(|node| &node.content),
            Some(Content::Written(_))
        );
        if !open.write || !is_file {
            return Err(Errno::Invalid.into());
        }
        self.resize(id, size)
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

    /// A folder's entries, by name.
    pub(super) fn entries(&self, number: u32) -> Answer<Vec<(&str, Stat)>> {
        let node = self.nodes.get(&self.node_of(number)?).ok_or(Errno::Io)?;
        let Content::Folder { entries, .. } = &node.content else {
            return Err(Errno::NotFolder.into());
        };
        let stat = |(name, id): (_, &NodeId)| Ok((String::as_str(name), self.stat_of(*id)?));
        entries.iter().map(stat).collect()
    }

    // ---- paths --------------------------------------------------------

    pub(super) fn open(&mut self, from: u32, path: &str, how: Opening) -> Answer<u32> {
        let (folder, name) = self.walk(from, path)?;
        let found = match name {
            None => Some(folder),
            Some(name) => self.find(folder, name).ok(),
        };
        let node = match (found, name) {
            (Some(_), _) if how.create && how.exclusive => return Err(Errno::Exists.into()),
            (Some(node), _) => node,
            (None, Some(name)) if how.create && !how.folder => {
                self.make(folder, name, Content::Written(Vec::new()))?
            }
            (None, _) => return Err(Errno::NotFound.into()),
        };
        let content = &self.nodes.get(&node).ok_or(Errno::Io)?.content;
        match content {
            Content::Folder { .. } if how.write || how.truncate => {
                return Err(Errno::IsFolder.into());
            }
            Content::Folder { .. } => {}
            _ if how.folder => return Err(Errno::NotFolder.into()),
            Content::Input(_) if how.write || how.truncate => return Err(Errno::ReadOnly.into()),
            Content::Input(_) | Content::Written(_) | Content::Stream { .. } => {}
        }
        if how.truncate {
            self.resize(node, 0)?;
        }
        let number = (0..).find(|number| !self.open.contains_key(number));
        let number = number.filter(|_| self.open.len() < COMMAND_OPEN_MAX);
        let number = number.ok_or(Errno::TooManyOpen)?;
        self.hold(number, node, how.append, how.write);
        Ok(number)
    }

    pub(super) fn stat_path(&self, from: u32, path: &str) -> Answer<Stat> {
        let (folder, name) = self.walk(from, path)?;
        self.stat_of(match name {
            None => folder,
            Some(name) => self.find(folder, name)?,
        })
    }

    pub(super) fn make_folder(&mut self, from: u32, path: &str) -> Answer<()> {
        let (parent, name) = self.walk_to_name(from, path)?;
        self.make(parent, name, folder(true)).map(|_| ())
    }

    /// Removes a file, or an empty folder.
    pub(super) fn remove(&mut self, from: u32, path: &str, is_folder: bool) -> Answer<()> {
        let (parent, name) = self.walk_to_name(from, path)?;
        let node = self.find(parent, name)?;
        match &self.nodes.get(&node).ok_or(Errno::Io)?.content {
            Content::Folder { entries, .. } if is_folder && !entries.is_empty() => {
                return Err(Errno::NotEmpty.into());
            }
            Content::Folder { .. } if !is_folder => return Err(Errno::IsFolder.into()),
            Content::Folder { .. } => {}
            _ if is_folder => return Err(Errno::NotFolder.into()),
            Content::Input(_) | Content::Written(_) | Content::Stream { .. } => {}
        }
        self.unlink(parent, name)
    }

    pub(super) fn rename(&mut self, from: (u32, &str), to: (u32, &str)) -> Answer<()> {
        let (old_parent, old_name) = self.walk_to_name(from.0, from.1)?;
        let (new_parent, new_name) = self.walk_to_name(to.0, to.1)?;
        let node = self.find(old_parent, old_name)?;
        self.entries_of(old_parent)?;
        self.entries_of(new_parent)?;
        if self.is_within(new_parent, node) {
            return Err(Errno::Invalid.into());
        }
        if let Ok(target) = self.find(new_parent, new_name) {
            if target == node {
                return Ok(());
            }
            let is_folder = |id| self.stat_of(id).map(|stat| stat.kind == Kind::Folder);
            if is_folder(node)? != is_folder(target)? {
                return Err(Errno::Exists.into());
            }
            self.remove(to.0, to.1, is_folder(target)?)?;
        }
        self.entries_of(old_parent)?.remove(old_name);
        self.link(new_parent, new_name, node)
    }

    // ---- nodes --------------------------------------------------------

    fn node_of(&self, number: u32) -> Answer<NodeId> {
        let open = self.open.get(&number).ok_or(Errno::BadDescriptor)?;
        Ok(open.node)
    }

    fn find(&self, folder: NodeId, name: &str) -> Answer<NodeId> {
        match self.nodes.get(&folder).map(|node| &node.content) {
            Some(Content::Folder { entries, .. }) => entries
                .get(name)
                .copied()
                .ok_or_else(|| Errno::NotFound.into()),
            Some(_) | None => Err(Errno::NotFolder.into()),
        }
    }

    /// Follows a path to the folder of its last name. Without a name it leads
    /// to the folder itself.
    fn walk<'a>(&self, from: u32, path: &'a str) -> Answer<(NodeId, Option<&'a str>)> {
        if path.starts_with('/') {
            return Err(Errno::NotCapable.into());
        }
        let mut above = vec![self.node_of(from)?];
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
                above.push(self.find(inside, name)?);
            } else {
                break;
            }
            last = next;
        }
        let folder = above.last().copied().ok_or(Errno::NotCapable)?;
        if self.stat_of(folder)?.kind != Kind::Folder {
            return Err(Errno::NotFolder.into());
        }
        Ok((folder, last))
    }

    fn walk_to_name<'a>(&self, from: u32, path: &'a str) -> Answer<(NodeId, &'a str)> {
        let (folder, name) = self.walk(from, path)?;
        Ok((folder, name.ok_or(Errno::Invalid)?))
    }

    /// The entries of a folder that may be changed.
    fn entries_of(&mut self, folder: NodeId) -> Answer<&mut BTreeMap<String, NodeId>> {
        match self.nodes.get_mut(&folder).map(|node| &mut node.content) {
            Some(Content::Folder {
                entries,
                writable: true,
            }) => Ok(entries),
            Some(Content::Folder { .. }) => Err(Errno::ReadOnly.into()),
            Some(_) | None => Err(Errno::NotFolder.into()),
        }
    }

    fn make(&mut self, parent: NodeId, name: &str, content: Content) -> Answer<NodeId> {
        if self.entries_of(parent)?.contains_key(name) {
            return Err(Errno::Exists.into());
        }
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
        let node = Node {
            content,
            linked: false,
            opened: 0,
        };
        self.nodes.insert(id, node);
        Ok(id)
    }

    fn link(&mut self, parent: NodeId, name: &str, node: NodeId) -> Answer<()> {
        let linked = self.nodes.get_mut(&node).ok_or(Errno::Io)?;
        linked.linked = true;
        match self.nodes.get_mut(&parent).map(|node| &mut node.content) {
            Some(Content::Folder { entries, .. }) => {
                entries.insert(name.to_owned(), node);
                Ok(())
            }
            Some(_) | None => Err(Errno::NotFolder.into()),
        }
    }

    fn unlink(&mut self, parent: NodeId, name: &str) -> Answer<()> {
        let entries = self.entries_of(parent)?;
        let node = entries.remove(name).ok_or(Errno::NotFound)?;
        if let Some(gone) = self.nodes.get_mut(&node) {
            gone.linked = false;
        }
        self.forget(node);
        Ok(())
    }

    /// Frees a node that nothing names and nothing has open.
    fn forget(&mut self, node: NodeId) {
        let Entry::Occupied(entry) = self.nodes.entry(node) else {
            return;
        };
        if entry.get().linked || entry.get().opened > 0 {
            return;
        }
        // A standard stream comes back even if the program closed it.
        if let Content::Stream { .. } = entry.get().content {
            return;
        }
        if let Content::Written(bytes) = entry.remove().content {
            self.bytes -= length(&bytes);
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
                Content::Folder { .. } => Kind::Folder,
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
            Some(Content::Folder { .. }) | None => 0,
        }
    }

    /// Changes the size of what was written, within the program's memory.
    fn resize(&mut self, id: NodeId, size: u64) -> Answer<()> {
        let old = self.size_of(id);
        let node = self.nodes.get_mut(&id).ok_or(Errno::Io)?;
        let (bytes, counted) = match &mut node.content {
            Content::Written(bytes) => {
                let all = (self.bytes - old).checked_add(size);
                let all = all.filter(|all| *all <= self.bytes_max);
                (bytes, all.ok_or(Errno::NoSpace)?)
            }
            Content::Stream { bytes, .. } => (bytes, self.bytes),
            Content::Folder { .. } | Content::Input(_) => return Err(Errno::ReadOnly.into()),
        };
        let size = usize::try_from(size).map_err(|_| Errno::FileTooLarge)?;
        let more = size.saturating_sub(bytes.len());
        bytes.try_reserve(more).map_err(|_| Errno::NoSpace)?;
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

    /// Whether a folder is another one, or lies somewhere below it. Folders may
    /// be nested as deep as there are nodes, so this does not recurse.
    fn is_within(&self, folder: NodeId, other: NodeId) -> bool {
        let mut left = vec![other];
        while let Some(node) = left.pop() {
            if node == folder {
                return true;
            }
            if let Some(Content::Folder { entries, .. }) =
                self.nodes.get(&node).map(|node| &node.content)
            {
                left.extend(entries.values());
            }
        }
        false
    }
}

impl Input {
    fn read(&self, from: u64, into: &mut [u8]) -> Answer<usize> {
        let left = usize::try_from(self.bytes.saturating_sub(from)).unwrap_or(usize::MAX);
        let count = left.min(into.len());
        let read = self.file.read_exact_at(&mut into[..count], from);
        read.map_err(|_| Errno::Io)?;
        Ok(count)
    }
}

const fn folder(writable: bool) -> Content {
    Content::Folder {
        entries: BTreeMap::new(),
        writable,
    }
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
            Err(Refused::Stop(stop)) => panic!("{stop:?}"),
            Ok(_) => panic!("it was done"),
        }
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
        let names: Vec<_> = {
            let out = files.open(ROOT, "out", READ).unwrap();
            let entries = files.entries(out).unwrap();
            entries
                .into_iter()
                .map(|(name, _)| name.to_owned())
                .collect()
        };
        assert_eq!(names, ["b"]);
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
        let opened = (0..COMMAND_OPEN_MAX).map(|_| files.open(ROOT, "tmp/0", READ));
        assert_eq!(errno(opened.last().unwrap()), Errno::TooManyOpen);
    }
}
