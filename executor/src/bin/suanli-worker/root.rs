//! The worker's root: a folder in memory, with nothing in it but what the policy
//! permits.
//!
//! ```text
//!   find the pieces ─▶ own mount namespace ─▶ copy each mount, not attached yet
//!     ─▶ attach an empty root ─▶ put the pieces in ─▶ change roots ─▶ let go of the old
//! ```
//!
//! Until the roots are changed, in one system call, whatever fails leaves the
//! worker where it was, with what was attached taken off again. Everything is
//! attached read-only, without setuid, and without devices but where the policy
//! gives devices; links on the way to a path are made again as they are.
//! Absent: which paths (see `confine`), a `/proc` of one's own, and any
//! file that could be written.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{OsStr, OsString},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
        mount_change, move_mount, open_tree, unmount,
    },
    process::{chdir, fchdir, pivot_root, umask},
    thread::{UnshareFlags, unshare_unsafe},
};
use suanli_executor::policy::Access;

/// Where the new root is attached until it is the root: a folder that is there
/// on every machine. Only this process sees it covered.
const SITE: &str = "/proc";
/// Folders, and files to attach others to, take a page at most.
const ROOT_BYTES: &str = "256k";
/// The policy's paths and the folders on the way there are some hundred.
const ROOT_FILES: &str = "1024";
/// As many as the kernel follows itself.
const LINKS_MAX: usize = 40;

/// What lies at a path of the new root.
enum Piece {
    Link(PathBuf),
    Tree { is_folder: bool, access: Access },
}

/// Changes to a root that holds these paths, as far as they are there, and the
/// links that lead to them.
pub(crate) fn enter<'a>(
    permitted: impl IntoIterator<Item = (&'a Path, Access)>,
) -> Result<(), String> {
    let mut pieces = BTreeMap::new();
    for (path, access) in permitted {
        find(path, access, &mut pieces);
    }
    if pieces.contains_key(Path::new("/")) {
        return Err("a driver lies in `/` itself: put it into a folder of its own".to_owned());
    }
    // SAFETY: this process has one thread, and a mount namespace changes no
    // descriptor.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(because("a mount namespace"))?;
    // Nothing that is attached here shows elsewhere, nor the other way round.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(because("keeping mounts private"))?;
    let trees = copies(&pieces)?;
    let root = empty().map_err(because("a root in memory"))?;
    attach(&root, CWD, Path::new(SITE)).map_err(because("attaching a root"))?;
    let changed = fill(root.as_fd(), &pieces, trees).and_then(|()| change(root.as_fd()));
    if changed.is_err() {
        let _ = chdir("/");
        let _ = unmount(SITE, UnmountFlags::DETACH);
    }
    changed?;
    // The old root lies on the new one now; the working directory is below it.
    unmount(".", UnmountFlags::DETACH).map_err(because("letting go of the old root"))?;
    chdir("/").map_err(because("the new root"))
}

fn because(what: impl std::fmt::Display) -> impl FnOnce(Errno) -> String {
    move |error| format!("{what}: {error}")
}

/// Adds where a path really is, and the links that lead there; nothing if this
/// machine does not have it.
fn find(path: &Path, access: Access, pieces: &mut BTreeMap<PathBuf, Piece>) {
    let mut real = PathBuf::from("/");
    let (mut links, mut followed) = (BTreeMap::new(), 0);
    let mut ahead: VecDeque<OsString> = names(path).collect();
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            real.pop();
            continue;
        }
        let here = real.join(name);
        match std::fs::read_link(&here) {
            Ok(_) if followed == LINKS_MAX => return,
            Ok(target) => {
                followed += 1;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                for name in names(&target).rev() {
                    ahead.push_front(name);
                }
                links.insert(here, Piece::Link(target));
            }
            Err(_) => real = here,
        }
    }
    let Ok(metadata) = std::fs::metadata(&real) else {
        return;
    };
    let is_folder = metadata.is_dir();
    pieces.append(&mut links);
    pieces.insert(real, Piece::Tree { is_folder, access });
}

/// The names on a path, from its first.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let name = |part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name)
}

/// A copy of the mounts at each path, attached nowhere, with what it may do
/// taken from it. `None` for what can't be reached: it could not be opened
/// either.
fn copies(pieces: &BTreeMap<PathBuf, Piece>) -> Result<Vec<Option<OwnedFd>>, String> {
    let copy = |(path, piece): (&PathBuf, &Piece)| {
        let Piece::Tree { access, .. } = piece else {
            return Ok(None);
        };
        let all = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = match open_tree(CWD, path, all) {
            Ok(tree) => tree,
            Err(Errno::NOENT | Errno::ACCESS) => return Ok(None),
            Err(error) => return Err(because(path.display())(error)),
        };
        let mut without = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        if *access != Access::Device {
            without |= MountAttrFlags::MOUNT_ATTR_NODEV;
        }
        restrict(&tree, without).map_err(because(path.display()))?;
        Ok(Some(tree))
    };
    pieces.iter().map(copy).collect()
}

/// A file system in memory, attached nowhere.
fn empty() -> Result<OwnedFd, Errno> {
    let kind = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(kind.as_fd(), "size", ROOT_BYTES)?;
    fsconfig_set_string(kind.as_fd(), "nr_inodes", ROOT_FILES)?;
    fsconfig_set_string(kind.as_fd(), "mode", "755")?;
    fsconfig_create(kind.as_fd())?;
    let nothing = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(kind.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, nothing)
}

fn fill(
    root: BorrowedFd<'_>,
    pieces: &BTreeMap<PathBuf, Piece>,
    trees: Vec<Option<OwnedFd>>,
) -> Result<(), String> {
    // Who becomes nobody later must still find the way.
    umask(Mode::from_raw_mode(0o022));
    for ((path, piece), tree) in pieces.iter().zip(trees) {
        let inside: PathBuf = names(path).collect();
        let placed = match (piece, tree) {
            (Piece::Link(target), _) => make_way(root, &inside)
                .and_then(|()| there(rustix::fs::symlinkat(target, root, &inside))),
            (Piece::Tree { is_folder, .. }, Some(tree)) => make_way(root, &inside)
                .and_then(|()| make_place(root, &inside, *is_folder))
                .and_then(|()| attach(&tree, root, &inside)),
            (Piece::Tree { .. }, None) => Ok(()),
        };
        placed.map_err(because(path.display()))?;
    }
    restrict(&root, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(because("a root to read only"))
}

/// The folders on the way to a path.
fn make_way(root: BorrowedFd<'_>, inside: &Path) -> Result<(), Errno> {
    let above = inside.ancestors().skip(1);
    let above = above.filter(|folder| *folder != OsStr::new(""));
    let above: Vec<&Path> = above.collect();
    let mut from_top = above.into_iter().rev();
    from_top.try_for_each(|folder| make_place(root, folder, true))
}

/// Something to attach to, of the same kind as what is attached.
fn make_place(root: BorrowedFd<'_>, inside: &Path, is_folder: bool) -> Result<(), Errno> {
    there(if is_folder {
        rustix::fs::mkdirat(root, inside, Mode::from_raw_mode(0o755))
    } else {
        let mode = Mode::from_raw_mode(0o444);
        rustix::fs::mknodat(root, inside, FileType::RegularFile, mode, 0)
    })
}

/// Two paths share their way, and a path can lie within another.
fn there(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn attach(tree: &OwnedFd, to: BorrowedFd<'_>, place: &Path) -> Result<(), Errno> {
    move_mount(tree, "", to, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The old root comes to lie on the new one, which needs no place for it.
fn change(root: BorrowedFd<'_>) -> Result<(), String> {
    fchdir(root).map_err(because("going to the new root"))?;
    pivot_root(".", ".").map_err(because("changing the root"))
}

/// Takes from a mount and all below it what these flags say. Flags that it has
/// are kept, which a user namespace insists on.
fn restrict(tree: &impl std::os::fd::AsFd, without: MountAttrFlags) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: without.bits().into(),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: path and attributes live across the call, and the size given is
    // that of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(path: &Path) -> BTreeMap<PathBuf, Piece> {
        let mut pieces = BTreeMap::new();
        find(path, Access::Read, &mut pieces);
        pieces
    }

    #[test]
    fn a_path_is_found_where_it_is_with_the_links_that_lead_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("usr/lib/vulkan")).unwrap();
        symlink("usr/lib", dir.join("lib")).unwrap();
        symlink(dir.join("usr/lib/../lib/vulkan"), dir.join("drivers")).unwrap();
        let real = dir.join("usr/lib/vulkan");
        for (path, link) in [("lib/vulkan", "lib"), ("drivers", "drivers")] {
            let pieces = found(&dir.join(path));
            let kinds = pieces.into_iter().map(|(path, piece)| match piece {
                Piece::Link(_) => (path, "link"),
                Piece::Tree {
                    is_folder: true, ..
                } => (path, "folder"),
                Piece::Tree { .. } => (path, "file"),
            });
            let mut kinds: Vec<_> = kinds.collect();
            kinds.sort();
            assert_eq!(kinds, [(dir.join(link), "link"), (real.clone(), "folder")]);
        }
    }

    #[test]
    fn what_is_not_there_or_leads_nowhere_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        symlink("nowhere", dir.join("dangling")).unwrap();
        symlink("circle", dir.join("circle")).unwrap();
        for name in ["none", "dangling", "circle", "dangling/further"] {
            assert!(found(&dir.join(name)).is_empty(), "{name}");
        }
    }
}
