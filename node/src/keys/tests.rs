use std::os::unix::fs::PermissionsExt as _;

use suanli_protocol::units::Amount;

use super::*;

const NOW: Wall = Wall::from_millis(1_000_000);

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

fn key(text: &str, terms: Terms) -> Key {
    let hash = Hash::of(text.as_bytes());
    Key::new((name(text), hash), terms, (NOW, Instant::now()))
}

/// A key that has all that a key may have.
fn limited() -> Terms {
    Terms {
        models: model_names(&["small".to_owned(), "大".to_owned()]).unwrap(),
        requests_per_minute: NonZeroU32::new(60),
        tokens_per_minute: NonZeroU32::new(1000),
        budget: Some(Budget {
            amount: Amount::from_micros(20_500_000),
            days: 7,
        }),
        expires: Some(NOW.after(Duration::from_secs(1))),
    }
}

fn three() -> Register {
    let register = Register::default();
    let register = register.with(key("alice", Terms::default()), KEYS_MAX);
    let register = register
        .unwrap()
        .with(key("bob@firm.example", limited()), KEYS_MAX);
    let register = register.unwrap().with(key("carol", limited()), KEYS_MAX);
    register.unwrap().without(&name("carol"), NOW).unwrap()
}

fn finds(register: &Register, shown: &str, now: Wall) -> bool {
    register.find(Hash::of(shown.as_bytes()), now).is_some()
}

#[test]
fn keys_come_back_from_their_file_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    assert_eq!(KeyFile::open(&data).unwrap().register.iter().count(), 0);
    let written = three();
    write_private(&data.gateway_keys(), written.to_text().as_bytes()).unwrap();
    let mode = std::fs::metadata(data.gateway_keys())
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let read = KeyFile::open(&data).unwrap().register;
    assert_eq!(read.to_text(), written.to_text());
    assert_eq!(read.budgets(), written.budgets());
    for (name, state) in [
        ("alice", State::Live),
        ("bob@firm.example", State::Live),
        ("carol", State::Revoked),
    ] {
        let key = read.get(&self::name(name)).unwrap();
        assert_eq!(key.state(NOW), state, "{name}");
        assert_eq!(finds(&read, name, NOW), state == State::Live, "{name}");
    }
    assert_eq!(read.get(&name("carol")).unwrap().terms(), &limited());
}

#[test]
fn a_damaged_file_is_refused_in_words_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    let whole = three().to_text();
    let mut all = vec![String::new(), "{}".to_owned(), format!("{whole}x")];
    all.extend([1, 20, 90, 200].map(|cut| whole[..whole.len() - cut].to_owned()));
    all.push(whole.replace("20.5", "90.5"));
    all.push(whole.replacen("keys 1", "keys 2", 1));
    for damaged in all {
        write_private(&data.gateway_keys(), damaged.as_bytes()).unwrap();
        let error = KeyFile::open(&data).unwrap_err();
        assert!(matches!(error, DataDirError::Damaged { .. }), "{damaged}");
        let words = error.to_string();
        assert!(words.contains("gateway.keys"), "{words}");
        assert!(words.contains("restore it from a backup"), "{words}");
        let left = std::fs::read_to_string(data.gateway_keys()).unwrap();
        assert_eq!(left, damaged);
    }
}

#[test]
fn a_file_that_is_whole_and_says_nonsense_is_refused_by_line() {
    for (line, why) in [
        (r#"{"name":"alice"}"#, "line 2: missing field"),
        (r#"{"nmae":"alice"}"#, "line 2: unknown field"),
    ] {
        let lines = format!("{line}\n");
        let text = format!("suanli keys 1 {:#}\n{lines}", Hash::of(lines.as_bytes()));
        let refused = Register::from_text(&text, Instant::now()).unwrap_err();
        assert!(refused.starts_with(why), "{refused}");
    }
    let whole = three().to_text();
    let twice = whole.lines().nth(1).unwrap();
    let lines = format!("{twice}\n{twice}\n");
    let text = format!("suanli keys 1 {:#}\n{lines}", Hash::of(lines.as_bytes()));
    let refused = Register::from_text(&text, Instant::now()).unwrap_err();
    assert_eq!(refused, "line 3: alice is there twice");
}

#[test]
fn abuse_64_keys_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = DataDir::new(dir.path()).gateway_keys();
    write_private(&path, three().to_text().as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = KeyFile::open(&DataDir::new(dir.path())).unwrap_err();
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[test]
fn abuse_63_a_revoked_key_opens_nothing_and_its_name_is_free() {
    let first = Register::default()
        .with(key("alice", Terms::default()), KEYS_MAX)
        .unwrap();
    let again = first.with(key("alice", Terms::default()), KEYS_MAX);
    let words = again.unwrap_err().to_string();
    assert!(words.contains("suanli key revoke alice"), "{words}");
    let revoked = first.without(&name("alice"), NOW).unwrap();
    assert!(finds(&first, "alice", NOW) && !finds(&revoked, "alice", NOW));
    // Once more changes nothing.
    let later = NOW.after(Duration::from_secs(9));
    let twice = revoked.without(&name("alice"), later).unwrap();
    assert_eq!(twice.to_text(), revoked.to_text());
    let unknown = revoked.without(&name("bob"), NOW).unwrap_err();
    assert!(matches!(unknown, KeysError::Unknown(_)));
    let mut other = key("alice", Terms::default());
    other.hash = Hash::of(b"other");
    let made = revoked.with(other, KEYS_MAX).unwrap();
    assert!(finds(&made, "other", NOW) && !finds(&made, "alice", NOW));
    assert_eq!(made.iter().count(), 1);
}

#[test]
fn a_key_ends_when_it_expires() {
    let register = three();
    let bob = "bob@firm.example";
    let before = NOW.after(Duration::from_millis(999));
    let after = NOW.after(Duration::from_secs(1));
    assert!(finds(&register, bob, before) && !finds(&register, bob, after));
    let key = register.get(&name(bob)).unwrap();
    assert_eq!(
        (key.state(before), key.state(after)),
        (State::Live, State::Expired)
    );
    assert_eq!(key.state(after).name(), "expired");
}

#[test]
fn there_are_no_more_keys_than_there_may_be() {
    let full = three();
    // The revoked one makes room, and then nobody does.
    let more = full.with(key("dave", Terms::default()), 3).unwrap();
    assert!(more.get(&name("carol")).is_none());
    let refused = more.with(key("erin", Terms::default()), 3).unwrap_err();
    assert!(matches!(refused, KeysError::TooMany(3)), "{refused}");
}

#[test]
fn a_revoked_budget_holds_until_its_name_is_used_again() {
    let register = three();
    let names = |register: &Register| {
        let budgets = register.budgets();
        budgets.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&register), ["bob@firm.example", "carol"]);
    let register = register
        .with(key("carol", Terms::default()), KEYS_MAX)
        .unwrap();
    assert_eq!(names(&register), ["bob@firm.example"]);
}

#[test]
fn a_key_asks_at_its_rates() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let terms = Terms {
        requests_per_minute: NonZeroU32::new(2),
        tokens_per_minute: NonZeroU32::new(100),
        ..Terms::default()
    };
    let key = Key::new((name("ci"), Hash::of(b"ci")), terms, (NOW, start));
    assert_eq!((key.admit(at(0)), key.admit(at(0))), (Ok(()), Ok(())));
    let refused = key.admit(at(0)).unwrap_err();
    let wait = Duration::from_secs(30);
    let (of, limit) = ("requests", 2);
    assert_eq!(refused, TooFast { of, limit, wait });
    // An answer is counted when it has ended: the next question waits for what it was over.
    key.uses((100, 50), at(0));
    let refused = key.admit(at(30)).unwrap_err();
    let wait = Duration::from_millis(600);
    let (of, limit) = ("tokens", 100);
    assert_eq!(refused, TooFast { of, limit, wait });
    assert_eq!(key.admit(at(31)), Ok(()));
    assert_eq!(key.used(), (100, 50));
    let (requests, tokens) = key.rates(at(31));
    let left = |rate: Option<Left>| rate.map(|left| (left.limit, left.remaining));
    assert_eq!(
        (left(requests), left(tokens)),
        (Some((2, 0)), Some((100, 1)))
    );

    let free = self::key("free", Terms::default());
    free.uses((u64::MAX, 1), at(0));
    assert!((0..1000).all(|_| free.admit(at(0)).is_ok()));
    assert_eq!(free.rates(at(0)), (None, None));
}

#[test]
fn a_key_that_names_models_is_for_no_other() {
    assert!(key("alice", Terms::default()).may_use("anything"));
    let limited = key("bob", limited());
    assert!(limited.may_use("small") && limited.may_use("大"));
    assert!(!limited.may_use("smal") && !limited.may_use("Small"));
    let many: Vec<String> = (0..=MODELS_MAX).map(|n| n.to_string()).collect();
    assert!(model_names(&many).is_err());
    assert!(model_names(&["\u{202e}evil".to_owned()]).is_err());
    assert!(model_names(&[String::new()]).is_err());
    assert!(rate_of(Some(0)).is_err() && rate_of(Some(u32::MAX)).is_err());
}

#[test]
fn abuse_70_a_name_is_safe_in_paths_and_on_terminals() {
    for good in ["a", "Alice", "a.b_c-d@e", "7", &"x".repeat(NAME_BYTES_MAX)] {
        assert!(KeyName::new(good).is_ok(), "{good}");
    }
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a b",
        "a%2f",
        "*",
        "-x",
        "a\u{1b}[0m",
        "é",
        "gateway",
        "default",
        &long,
    ] {
        assert!(KeyName::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn abuse_71_a_secret_is_long_and_does_not_show_itself() {
    let (one, other) = (Secret::new().unwrap(), Secret::new().unwrap());
    assert_eq!(one.tell().len(), SECRET_BEGINS.len() + 64);
    assert!(one.tell().starts_with(SECRET_BEGINS));
    assert_ne!(one.tell(), other.tell());
    assert!(!format!("{one:?} {one:#?}").contains(&one.tell()[SECRET_BEGINS.len()..]));
    let key = Key::new(
        (name("x"), Hash::of(one.tell().as_bytes())),
        Terms::default(),
        (NOW, Instant::now()),
    );
    let text = Register::default().with(key, KEYS_MAX).unwrap().to_text();
    assert!(!text.contains(one.tell()));
}
