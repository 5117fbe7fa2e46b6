//! What operators write, right and wrong.

use std::{collections::BTreeMap, path::Path, time::Duration};

use suanli_executor::AdapterSelection;

use super::*;

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    load_with(text, &[], &[])
}

fn load_with(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let environment = [("HOME", "/home/somebody")].iter().chain(environment);
    load(&Sources {
        file: Some(file),
        environment: environment
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        flags: flags
            .iter()
            .map(|(key, value)| FlagValue {
                flag: format!("--{key}"),
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect(),
    })
}

/// The message without the folder of the test.
fn refused(text: &str) -> String {
    let message = load_text(text).unwrap_err().to_string();
    let start = message.find("config.toml").unwrap_or(0);
    message[start..].to_owned()
}

const PROVIDER: &str = r#"
region = "CN-NX"
max_price = "2.5"
store_quota = "1GiB"
[provide]
slots = 2
device = "software"
memory = "512MiB"
known = [{ account = "0202020202020202020202020202020202020202020202020202020202020202", credit = "100" }]
[[provide.price]]
meter = "gpu.ms"
amount = "0.36"
per = 3_600_000
[timing]
lost_after = "12s"
"#;

#[test]
fn a_file_is_read_completely() {
    let config = load_text(PROVIDER).unwrap().config;
    let provide = config.provide.unwrap();
    assert_eq!(config.region, "CN-NX");
    assert_eq!(config.max_price, "2.5".parse().unwrap());
    assert_eq!(config.store_quota, ByteSize(1 << 30));
    assert_eq!((provide.slots, provide.workers), (2, 1));
    assert_eq!(provide.memory, Some(ByteSize(512 << 20)));
    assert_eq!(provide.known.len(), 1);
    assert_eq!(provide.prices()[0].per, 3_600_000);
    assert_eq!(config.timing.lost_after, Duration::from_secs(12));
}

#[test]
fn defaults_are_those_of_a_client_on_loopback() {
    let loaded = load(&Sources {
        environment: BTreeMap::from([("HOME".to_owned(), "/home/somebody".to_owned())]),
        ..Sources::default()
    });
    let config = loaded.unwrap().config;
    assert_eq!(
        config.data_dir,
        Path::new("/home/somebody/.local/share/suanli")
    );
    assert!(config.provide.is_none() && config.lan());
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "region = \"a\"\nunit = \"CNY\"\nlog = \"warn\"";
    let environment = [("SUANLI_REGION", "b"), ("SUANLI_LOG", "debug")];
    let loaded = load_with(file, &environment, &[("region", "c")]).unwrap();
    assert_eq!(loaded.config.region, "c");
    assert_eq!(loaded.origin("region"), Origin::Flag("--region".into()));
    assert_eq!(loaded.config.log, "debug");
    assert_eq!(
        loaded.origin("log"),
        Origin::Environment("SUANLI_LOG".into())
    );
    assert!(matches!(
        loaded.origin("unit"),
        Origin::File { line: 2, .. }
    ));
    assert_eq!(loaded.origin("network"), Origin::Default);
}

#[test]
fn the_environment_sets_numbers_lists_and_sections() {
    let environment = [
        (
            "SUANLI_BOOTSTRAP",
            "/ip4/192.0.2.1/tcp/1,/ip4/192.0.2.2/tcp/2",
        ),
        ("SUANLI_PROVIDE_SLOTS", "3"),
        (
            "SUANLI_PROVIDE_PRICE",
            "[{ meter = \"gpu.ms\", amount = \"0.01\" }]",
        ),
        ("SUANLI_LAN", "false"),
        ("SUANLI_MAX_PRICE", "7"),
        ("SUANLI_CONFIG", "elsewhere"),
        ("SUANLI_SOMETHING_ELSE_ENTIRELY", "1"),
    ];
    let config = load_with("", &environment, &[]).unwrap().config;
    assert_eq!(config.bootstrap.len(), 2);
    assert_eq!(config.provide.as_ref().unwrap().slots, 3);
    assert_eq!(config.provide.unwrap().prices()[0].per, 1);
    assert_eq!(config.lan, Some(false));
    assert_eq!(config.max_price, "7".parse().unwrap());
}

#[test]
fn every_value_can_be_shown_and_read_again() {
    let loaded = load_text(PROVIDER).unwrap();
    let mut flags = Vec::new();
    for (key, value, _) in loaded.rows() {
        flags.push(FlagValue {
            flag: key.to_owned(),
            key: key.to_owned(),
            value: match value.unwrap() {
                toml::Value::String(text) => text,
                other => other.to_string(),
            },
        });
    }
    let again = load(&Sources {
        flags,
        ..Sources::default()
    });
    assert_eq!(
        format!("{:?}", again.unwrap().config),
        format!("{:?}", loaded.config)
    );
}

#[test]
fn wrong_files_are_refused_in_words() {
    let messages = [
        "regoin = \"x\"",
        "\n[provide]\nslotz = 1",
        "\n[provide]\nslots = \"two\"",
        "[provide]\nslots = 0\nprice = [{ meter = \"gpu.ms\", amount = \"1\" }]",
        "[provide]",
        "[provide]\nprice = [{ meter = \"gpu.sm\", amount = \"1\" }]",
        "[provide]\nprice = [{ meter = \"gpu.ms\", amount = \"1\" }, { meter = \"gpu.ms\", amount = \"2\" }]",
        "[provide]\n\n[[provide.price]]\nmeter = \"job\"\namout = \"1\"",
        "[timing]\nheartbeat = 5",
        "[timing]\noffer_ttl = \"1h\"",
        "listen = [\"127.0.0.1:80\"]",
        "api = \"localhost\"",
        "max_price = \"much\"",
        "store_quota = \"1GB\"",
        "log_format = \"xml\"",
        "region = \"\"",
        "lan = yes",
        "provide = 1",
    ]
    .map(|text| format!("{text}\n  => {}", refused(text)));
    insta::assert_snapshot!(messages.join("\n\n"));
}

#[test]
fn the_operators_own_use_is_read_and_shown() {
    let text = r#"
[provide]
memory_reserve = "2GiB"
idle_after = "10m"
hours = ["mon-fri 19:00-07:00", "sat,sun"]
utc_offset = "+08:00"
yield = "off"
device = "none"
price = [{ meter = "wasm.fuel", amount = "1" }]
"#;
    let loaded = load_text(text).unwrap();
    let provide = loaded.config.provide.clone().unwrap();
    assert_eq!(provide.memory_reserve, ByteSize(2 << 30));
    assert_eq!(provide.idle_after.0, Some(Duration::from_secs(600)));
    assert_eq!(provide.yields, Yield::Off);
    let shown = |key| {
        let row = loaded.rows().find(|(of, _, _)| *of == key);
        row.unwrap().1.unwrap().to_string()
    };
    assert_eq!(
        shown("provide.hours"),
        "[\"mon-fri 19:00-07:00\", \"sat,sun\"]"
    );
    assert_eq!(shown("provide.idle_after"), "\"10m\"");
    assert_eq!(shown("provide.utc_offset"), "\"+08:00\"");
    assert_eq!(shown("provide.yield"), "\"off\"");
    assert_eq!(shown("provide.device"), "\"none\"");
    let environment = [("SUANLI_PROVIDE_HOURS", "mon-fri 19:00-07:00; sat,sun")];
    let loaded = load_with("", &environment, &[("provide.idle_after", "never")]);
    // A name may have commas; numbers don't.
    for (value, shown) in [
        ("#0, #2", "[\"#0\", \"#2\"]"),
        (
            "llvmpipe (LLVM 15.0.6, 256 bits)",
            "\"llvmpipe (LLVM 15.0.6, 256 bits)\"",
        ),
    ] {
        let loaded = load_with(text, &[], &[("provide.device", value)]).unwrap();
        let row = loaded.rows().find(|(of, _, _)| *of == "provide.device");
        assert_eq!(row.unwrap().1.unwrap().to_string(), shown);
    }
    let listed = text.replace("\"none\"", "[\"#1\", \"radeon\"]");
    let listed = load_text(&listed).unwrap().config.provide.unwrap();
    let radeon = AdapterSelection::Named("radeon".to_owned());
    assert_eq!(listed.device.0, [AdapterSelection::At(1), radeon]);
    // Without a price it does not sell; the rest was read.
    assert!(loaded.unwrap_err().to_string().contains("provide.price"));

    for (line, says) in [
        ("hours = [\"mo 7-8\"]", "provide.hours: `mo 7-8`"),
        ("hours = [\"sun\", 5]", "provide.hours: a text in quotes"),
        ("utc_offset = \"CET\"", "`CET` is no offset from UTC"),
        ("idle_after = \"1ms\"", "1s at least"),
        ("yield = \"maybe\"", "\"pause\" or \"off\""),
    ] {
        let said = refused(&format!(
            "[provide]\n{line}\nprice = [{{ meter = \"gpu.ms\", amount = \"1\" }}]"
        ));
        assert!(said.contains(says), "{line}: {said}");
    }
}

#[test]
fn every_key_is_documented() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    for setting in settings::SETTINGS.iter() {
        let name = setting.key.rsplit('.').next().unwrap();
        let shown =
            page.contains(&format!("`{name}`")) || page.contains(&format!("provide.{name}"));
        assert!(shown, "{} is not in docs/configuration.md", setting.key);
    }
}

#[test]
fn a_misspelt_variable_or_flag_is_refused() {
    let wrong = load_with("", &[("SUANLI_REGOIN", "x")], &[]).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "SUANLI_REGOIN: no such setting; did you mean `SUANLI_REGION`?"
    );
    let wrong = load_with("", &[], &[("provide.slot", "1")]).unwrap_err();
    assert!(wrong.to_string().contains("provide.slots"), "{wrong}");
}

#[test]
fn abuse_68_api_on_another_address_needs_a_yes() {
    let refused = load_text("api = \"0.0.0.0:7420\"").unwrap_err().to_string();
    assert!(refused.contains("api_allow_remote = true"), "{refused}");
    assert!(load_text("api = \"[::]:7420\"").is_err());
    assert!(load_text("api = \"0.0.0.0:7420\"\napi_allow_remote = true").is_ok());
}
