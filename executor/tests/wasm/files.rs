//! Files as programs see them: where calls fail late, at the edge, or in ways
//! that the standard leaves to the host. Numbers are WASI's.

use suanli_executor::ExecutorConfig;

use crate::{
    commands::{command, output, run, wat_with},
    support::bench,
};

const BAD_DESCRIPTOR: u32 = 8;
const EXISTS: u32 = 20;
const FAULT: u32 = 21;
const INVALID: u32 = 28;
const IS_FOLDER: u32 = 31;
const NOT_FOUND: u32 = 44;
const NO_SPACE: u32 = 51;
const NOT_FOLDER: u32 = 54;
const NOT_EMPTY: u32 = 55;
const NO_SEEK: u32 = 70;

/// Runs a body that notes words, and gives them.
async fn noted(body: &str) -> Option<Vec<u32>> {
    let mut bench = bench(ExecutorConfig::default()).await?;
    let imports = [
        ("fd_pwrite", "i32 i32 i32 i64 i32"),
        ("fd_pread", "i32 i32 i32 i64 i32"),
        ("fd_readdir", "i32 i32 i32 i64 i32"),
        ("fd_filestat_get", "i32 i32"),
        ("path_create_directory", "i32 i32 i32"),
        ("path_filestat_get", "i32 i32 i32 i32 i32"),
        ("path_remove_directory", "i32 i32 i32"),
        ("path_rename", "i32 i32 i32 i32 i32 i32"),
    ]
    .map(|(name, takes)| {
        format!(
            r#"(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {takes}) (result i32)))"#
        )
    });
    let module = wat_with(
        &imports.concat(),
        &format!(
            r#"
            (global $end (mut i32) (i32.const 60000))
            (func $note (param i32)
                (i32.store (global.get $end) (local.get 0))
                (global.set $end (i32.add (global.get $end) (i32.const 4))))
            ;; makes or opens the file at such a place, for writing; notes a failure
            (func $file (param $at i32) (param $length i32) (result i32)
                (local $failed i32)
                (local.set $failed (call $path_open (i32.const 3) (i32.const 0)
                    (local.get $at) (local.get $length) (i32.const 1) (i64.const 64)
                    (i64.const 0) (i32.const 0) (i32.const 8)))
                (if (local.get $failed) (then (call $note (local.get $failed))))
                (i32.load (i32.const 8)))
            (func $size (param $fd i32) (result i32)
                (drop (call $fd_filestat_get (local.get $fd) (i32.const 50000)))
                (i32.load (i32.const 50032)))
            (func $vector (param $n i32) (param $at i32) (param $length i32)
                (i32.store (i32.add (i32.const 20000) (i32.mul (local.get $n) (i32.const 8))) (local.get $at))
                (i32.store (i32.add (i32.const 20004) (i32.mul (local.get $n) (i32.const 8))) (local.get $length)))
            (func $main {body})
            (func (export "_start")
                (call $main)
                (call $say (i32.const 1) (i32.const 60000)
                    (i32.sub (global.get $end) (i32.const 60000))))"#
        ),
    );
    let end = run(&mut bench, &command(), &[&module]).await;
    let bytes = output(&end, 0);
    let words = bytes.as_chunks::<4>().0.iter();
    Some(words.map(|word| u32::from_le_bytes(*word)).collect())
}

#[tokio::test]
async fn scattered_calls_check_all_their_buffers_first() {
    let Some(words) = noted(
        r#"
        (local $fd i32)
        (i32.store (i32.const 100) (i32.const 0x2f706d74)) ;; tmp/
        (i32.store8 (i32.const 104) (i32.const 0x78))
        (local.set $fd (call $file (i32.const 100) (i32.const 5)))
        (call $vector (i32.const 0) (i32.const 0) (i32.const 1000))
        (call $vector (i32.const 1) (i32.const 65000) (i32.const 1000))
        (call $note (call $fd_write (local.get $fd) (i32.const 20000) (i32.const 2) (i32.const 8)))
        (call $note (call $size (local.get $fd)))
        ;; a place for the count that is none
        (call $note (call $fd_write (local.get $fd) (i32.const 20000) (i32.const 1) (i32.const -2)))
        (call $note (call $size (local.get $fd)))
        ;; more than there may be, and as many as that, all empty
        (call $note (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1025) (i32.const 8)))
        (call $note (call $fd_write (local.get $fd) (i32.const 30000) (i32.const 1024) (i32.const 8)))"#,
    )
    .await
    else {
        return;
    };
    assert_eq!(words, [FAULT, 0, FAULT, 0, INVALID, 0]);
}

#[tokio::test]
async fn a_write_that_finds_no_space_late_says_how_far_it_came() {
    // Of sixteen mebibytes memory takes eight, and the file the rest.
    let Some(words) = noted(
        r#"
        (local $fd i32)
        (i32.store (i32.const 100) (i32.const 0x2f706d74))
        (i32.store8 (i32.const 104) (i32.const 0x78))
        (drop (memory.grow (i32.const 127)))
        (local.set $fd (call $file (i32.const 100) (i32.const 5)))
        (call $vector (i32.const 0) (i32.const 65536) (i32.const 3000000))
        (call $vector (i32.const 1) (i32.const 65536) (i32.const 3000000))
        (call $vector (i32.const 2) (i32.const 65536) (i32.const 3000000))
        (i32.store (i32.const 8) (i32.const 0))
        (call $note (call $fd_write (local.get $fd) (i32.const 20000) (i32.const 3) (i32.const 8)))
        (call $note (i32.load (i32.const 8)))
        (call $note (call $size (local.get $fd)))
        (call $note (call $fd_write (local.get $fd) (i32.const 20000) (i32.const 1) (i32.const 8)))"#,
    )
    .await
    else {
        return;
    };
    assert_eq!(words, [0, 6_000_000, 6_000_000, NO_SPACE]);
}

#[tokio::test]
async fn writing_nothing_far_away_does_not_grow_a_file() {
    let Some(words) = noted(
        r#"
        (local $fd i32)
        (i32.store (i32.const 100) (i32.const 0x2f706d74))
        (i32.store8 (i32.const 104) (i32.const 0x78))
        (local.set $fd (call $file (i32.const 100) (i32.const 5)))
        (call $vector (i32.const 0) (i32.const 0) (i32.const 0))
        (call $note (call $fd_pwrite (local.get $fd) (i32.const 20000) (i32.const 1) (i64.const 5000) (i32.const 8)))
        (call $note (call $size (local.get $fd)))
        (call $vector (i32.const 0) (i32.const 0) (i32.const 1))
        (call $note (call $fd_pwrite (local.get $fd) (i32.const 20000) (i32.const 1) (i64.const 5000) (i32.const 8)))
        (call $note (call $size (local.get $fd)))"#,
    )
    .await
    else {
        return;
    };
    assert_eq!(words, [0, 0, 0, 5001]);
}

#[tokio::test]
async fn streams_can_not_be_read_or_written_at_a_place() {
    let Some(words) = noted(
        r#"
        (call $vector (i32.const 0) (i32.const 0) (i32.const 1))
        (call $note (call $fd_pwrite (i32.const 1) (i32.const 20000) (i32.const 1) (i64.const 0) (i32.const 8)))
        (call $note (call $fd_pread (i32.const 1) (i32.const 20000) (i32.const 1) (i64.const 0) (i32.const 8)))
        (call $note (call $fd_read (i32.const 1) (i32.const 20000) (i32.const 1) (i32.const 8)))
        (call $note (call $fd_pread (i32.const 3) (i32.const 20000) (i32.const 1) (i64.const 0) (i32.const 8)))"#,
    )
    .await
    else {
        return;
    };
    assert_eq!(words, [NO_SEEK, NO_SEEK, BAD_DESCRIPTOR, IS_FOLDER]);
}

#[tokio::test]
async fn paths_fail_as_they_do_on_linux() {
    let Some(words) = noted(
        r#"
        (local $fd i32)
        ;; tmp/f, a file, with a slash behind it; tmp/d, a folder
        (i32.store (i32.const 100) (i32.const 0x2f706d74))
        (i32.store (i32.const 104) (i32.const 0x00002f66))
        (i32.store (i32.const 120) (i32.const 0x2f706d74))
        (i32.store (i32.const 124) (i32.const 0x00782f64))
        (i32.store8 (i32.const 140) (i32.const 0x2e)) ;; .
        (local.set $fd (call $file (i32.const 100) (i32.const 5)))
        (call $note (call $path_create_directory (i32.const 3) (i32.const 140) (i32.const 1)))
        (call $note (call $path_create_directory (i32.const 3) (i32.const 140) (i32.const 0)))
        (call $note (call $path_filestat_get (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 6) (i32.const 50000)))
        (call $note (call $path_create_directory (i32.const 3) (i32.const 120) (i32.const 5)))
        (call $note (call $path_rename (i32.const 3) (i32.const 100) (i32.const 5) (i32.const 3) (i32.const 120) (i32.const 5)))
        (call $note (call $path_rename (i32.const 3) (i32.const 120) (i32.const 5) (i32.const 3) (i32.const 100) (i32.const 5)))
        ;; out/ is empty and can't be replaced where it is, tmp/d/x can
        (call $note (call $path_create_directory (i32.const 3) (i32.const 120) (i32.const 7)))
        (i32.store (i32.const 160) (i32.const 0x2f706d74))
        (i32.store8 (i32.const 164) (i32.const 0x65)) ;; tmp/e
        (call $note (call $path_create_directory (i32.const 3) (i32.const 160) (i32.const 5)))
        (call $note (call $path_rename (i32.const 3) (i32.const 160) (i32.const 5) (i32.const 3) (i32.const 120) (i32.const 5)))
        (call $note (call $path_rename (i32.const 3) (i32.const 120) (i32.const 5) (i32.const 3) (i32.const 160) (i32.const 5)))"#,
    )
    .await
    else {
        return;
    };
    let wanted = [
        EXISTS, NOT_FOUND, NOT_FOLDER, 0, IS_FOLDER, NOT_FOLDER, 0, 0, NOT_EMPTY, 0,
    ];
    assert_eq!(words, wanted);
}

#[tokio::test]
async fn a_folder_can_be_emptied_while_it_is_listed() {
    // Makes tmp/a to tmp/j; then reads an entry at a time, and removes it at once.
    let Some(words) = noted(
        r#"
        (local $fd i32) (local $n i32) (local $cookie i64) (local $seen i32)
        (i32.store (i32.const 100) (i32.const 0x2f706d74))
        (loop $again
            (i32.store8 (i32.const 104) (i32.add (i32.const 0x61) (local.get $n)))
            (drop (call $path_create_directory (i32.const 3) (i32.const 100) (i32.const 5)))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $n) (i32.const 10))))
        (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 3)
            (i32.const 2) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 8)))
        (local.set $fd (i32.load (i32.const 8)))
        (loop $again
            (drop (call $fd_readdir (local.get $fd) (i32.const 1000) (i32.const 25) (local.get $cookie) (i32.const 8)))
            (if (i32.gt_u (i32.load (i32.const 8)) (i32.const 24)) (then
                (local.set $cookie (i64.load (i32.const 1000)))
                (if (i32.ne (i32.load8_u (i32.const 1024)) (i32.const 0x2e)) (then
                    (call $note (call $path_remove_directory (local.get $fd) (i32.const 1024) (i32.const 1)))
                    (local.set $seen (i32.add (local.get $seen) (i32.const 1)))))
                (br $again))))
        (call $note (local.get $seen))"#,
    )
    .await
    else {
        return;
    };
    assert_eq!(words, [&[0; 10][..], &[10]].concat());
}
