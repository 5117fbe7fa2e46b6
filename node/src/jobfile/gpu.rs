//! `market.gpu`: a GPU in few words, as the condition that it stands for.
//!
//! `"nvidia:h100:80GB.."`: maker, a part of the model's name, memory from and to. `*` or
//! nothing stands for any; parts at the end may be left out.

use suanli_executor::quantity::ByteSize;

use crate::measured::MAKERS;

/// The condition that a text stands for.
///
/// # Errors
/// What is wrong with it, and what to write.
pub(super) fn condition(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').map(str::trim).collect();
    let [maker, model, memory] = match *parts.as_slice() {
        [maker] => [maker, "*", "*"],
        [maker, model] => [maker, model, "*"],
        [maker, model, memory] => [maker, model, memory],
        _ => return Err(wrong(text, "it has more than three parts")),
    };
    let mut conditions = vec!["device.kind == \"gpu\"".to_owned()];
    if !is_any(maker) {
        let known = MAKERS.iter().find(|name| name.eq_ignore_ascii_case(maker));
        let known = known.ok_or_else(|| {
            let why = format!(
                "no maker is called `{}`; there are {}",
                maker.escape_debug(),
                MAKERS.join(", ")
            );
            wrong(text, &why)
        })?;
        conditions.push(format!("gpu.maker == \"{known}\""));
    }
    if !is_any(model) {
        conditions.push(format!("gpu.model.contains({})", quoted(text, model)?));
    }
    if !is_any(memory) {
        conditions.extend(in_range(text, memory)?);
    }
    Ok(conditions.join(" && "))
}

fn is_any(part: &str) -> bool {
    part.is_empty() || part == "*"
}

/// A model's name as devices say it: in capitals, as makers write them.
fn quoted(text: &str, model: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " -+._()/".contains(c);
    if !model.chars().all(is_plain) {
        return Err(wrong(
            text,
            "a model's name has letters, digits, blanks and -+._()/",
        ));
    }
    Ok(format!("\"{model}\""))
}

/// `24GB..`, `..16GB`, `24GB..48GB`, or `24GB` for at least that.
fn in_range(text: &str, memory: &str) -> Result<Vec<String>, String> {
    let (least, most) = memory.split_once("..").unwrap_or((memory, ""));
    let mut conditions = Vec::new();
    for (bound, how) in [(least.trim(), ">="), (most.trim(), "<=")] {
        if bound.is_empty() {
            continue;
        }
        let bytes = size(bound).map_err(|why| wrong(text, &why))?;
        conditions.push(format!("gpu.memory {how} bytes(\"{bytes}B\")"));
    }
    if conditions.is_empty() {
        return Err(wrong(text, "a range of memory has at least one end"));
    }
    Ok(conditions)
}

/// Bytes. Memory of GPUs is sold by the gigabyte, so that unit is known here, too.
fn size(bound: &str) -> Result<u64, String> {
    if let Some(number) = bound.strip_suffix("GB") {
        let number = number.trim().parse::<u64>().ok();
        let bytes = number.and_then(|number| number.checked_mul(1_000_000_000));
        return bytes.ok_or_else(|| format!("`{bound}` is no size"));
    }
    let size = bound.parse::<ByteSize>();
    size.map(|size| size.0).map_err(|error| error.to_string())
}

fn wrong(text: &str, why: &str) -> String {
    format!(
        "`market.gpu`: `{}`: {why}; write \"nvidia:*:24GB..\", \"amd\", or \"*:*:16GB..32GB\"",
        text.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use suanli_protocol::expression::Scope;

    use super::condition;

    #[test]
    fn few_words_stand_for_a_condition() {
        for (text, stands_for) in [
            ("*", "device.kind == \"gpu\""),
            (
                "nvidia",
                "device.kind == \"gpu\" && gpu.maker == \"NVIDIA\"",
            ),
            (
                "nvidia:*:24GB..",
                "device.kind == \"gpu\" && gpu.maker == \"NVIDIA\" && gpu.memory >= bytes(\"24000000000B\")",
            ),
            (
                "moore threads:S4000:..48GiB",
                "device.kind == \"gpu\" && gpu.maker == \"Moore Threads\" && \
                 gpu.model.contains(\"S4000\") && gpu.memory <= bytes(\"51539607552B\")",
            ),
            (
                ":MI300:1GB..2GB",
                "device.kind == \"gpu\" && gpu.model.contains(\"MI300\") && \
                 gpu.memory >= bytes(\"1000000000B\") && gpu.memory <= bytes(\"2000000000B\")",
            ),
        ] {
            assert_eq!(condition(text).unwrap(), stands_for, "{text}");
            crate::expression::condition(stands_for, Scope::Offer).unwrap();
        }
    }

    #[test]
    fn what_is_no_gpu_says_what_to_write() {
        for (text, says) in [
            ("nvidea", "there are NVIDIA, AMD"),
            ("a:b:c:d", "more than three"),
            ("nvidia:*:..", "at least one end"),
            ("nvidia:*:much", "is no size"),
            ("nvidia:\"||true:", "letters, digits"),
        ] {
            let said = condition(text).unwrap_err();
            assert!(said.contains(says) && said.contains("24GB.."), "{said}");
        }
    }
}
