//! Much of one thing: what costs a parser its stack, or a driver its time.
//!
//! Each kind is what one of the worker's checks counts, up to a little above its
//! bound and in combination with all else that a module holds.

use std::fmt::Write as _;

use crate::cursor::Cursor;

/// More than any bound of depth that the checks have.
const COUNT_MAX: usize = 8192;

/// An unsigned expression of the expression `leaf`.
pub(super) fn expression(leaf: &str, cursor: &mut Cursor<'_>) -> String {
    let kind = cursor.below(14);
    let count = cursor.count(COUNT_MAX);
    let wrap =
        |open: &str, close: &str| format!("{}{leaf}{}", open.repeat(count), close.repeat(count));
    match kind {
        0 => wrap("(", ")"),
        1 => format!("{leaf}{}", format!(" + {leaf}").repeat(count)),
        2 => wrap("~", ""),
        3 => wrap("max(3u, ", ")"),
        4 => wrap("vec2(7u, ", ").x"),
        5 => wrap("select(1u, ", ", true)"),
        6 => wrap("u32(i32(", "))"),
        7 => wrap("bitcast<u32>(", ")"),
        8 => wrap("out[", "]"),
        9 => wrap("array(1u, ", ")[1]"),
        10 => wrap("(2u ^ ", ")"),
        11 => wrap("u32(f32(", ") * 0.5)"),
        12 => format!("{leaf}{}", " << (1u & 3u)".repeat(count)),
        _ => format!(
            "select(0u, 1u, {leaf} < 3u{})",
            format!(" && {leaf} > 1u").repeat(count)
        ),
    }
}

/// Statements, where `leaf` is an unsigned expression.
pub(super) fn statements(leaf: &str, cursor: &mut Cursor<'_>) -> String {
    let kind = cursor.below(13);
    let count = cursor.count(COUNT_MAX / 8);
    let wrap = |open: &str, close: &str| {
        format!(
            "{} out[0] += {leaf}; {}",
            open.repeat(count),
            close.repeat(count)
        )
    };
    let each = |one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<String>();
    match kind {
        0 => wrap("{ ", "}"),
        1 => wrap(&format!("if {leaf} > 1u {{ "), "}"),
        2 => format!(
            "if {leaf} == 0u {{ }}{}",
            each(&|i| format!(" else if {leaf} == {i}u {{ out[1] = {i}u; }}"))
        ),
        3 => wrap("loop { ", " break; }"),
        4 => wrap("for (var i = 0u; i < 2u; i++) { ", "}"),
        5 => wrap(&format!("switch {leaf} {{ default: {{ "), "} }"),
        6 => format!(
            "switch {leaf} {{ {} default: {{ }} }}",
            each(&|i| format!("case {i}u: {{ out[{i}] = {i}u; }} "))
        ),
        7 => format!("out[2] = {leaf} * out[3];").repeat(count),
        // Each is of two of the one before.
        8 => format!(
            "let d0 = {leaf}; {}",
            each(&|i| format!("let d{} = d{i} + d{i};", i + 1))
        ),
        9 => each(&|i| format!("let t{i} = array<u32, {}>()[{leaf} % {}u];", i + 1, i + 1)),
        10 => wrap(
            "loop { if out[1] > 9u { break; } continuing { ",
            " break if true; } }",
        ),
        11 => format!(
            "var big: array<vec4<u32>, {}>; big[{leaf} % 4u].x = 1u;",
            count + 4
        ),
        _ => each(&|i| format!("var m{i} = mat4x4<f32>(); out[{i}] = u32(m{i}[{leaf} & 3u].x);")),
    }
}

/// Declarations that nothing else needs, except that all may call `extra()`.
pub(super) fn declarations(cursor: &mut Cursor<'_>) -> String {
    let kind = cursor.below(17);
    let count = cursor.count(COUNT_MAX / 2);
    let few = count.min(40);
    let mut text = String::new();
    let mut body = String::from("return 0u;");
    let mut each = |count: usize, one: &dyn Fn(usize) -> String| {
        for index in 1..=count {
            let _ = writeln!(text, "{}", one(index));
        }
    };
    match kind {
        0 => {
            each(few, &|i| {
                format!(
                    "fn dc{i}(x: u32) -> u32 {{ return dc{}(x) ^ dc{}(x + 1u); }}",
                    i - 1,
                    i - 1
                )
            });
            text.insert_str(0, "fn dc0(x: u32) -> u32 { return x * out[x]; }\n");
            body = format!("return dc{few}(2u);");
        }
        1 => {
            each(count, &|i| format!("fn ch{i}() {{ ch{}(); }}", i - 1));
            text.insert_str(0, "fn ch0() { }\n");
            body = format!("ch{count}(); return 1u;");
        }
        2 => each(count, &|i| format!("const k{i} = {i}u;")),
        3 => {
            each(count, &|i| {
                format!("const w{i} = w{} / 2u + w{} / 2u;", i - 1, i - 1)
            });
            text.insert_str(0, "const w0 = 8u;\n");
            body = format!("return w{count};");
        }
        // A value that is twice the one before, in words or in one.
        4 => {
            each(few, &|i| {
                format!("struct D{i} {{ a: D{}, b: D{}, }}", i - 1, i - 1)
            });
            text.insert_str(0, "struct D0 { a: u32, }\n");
            body = format!(
                "var d = D{few}(); return d.a{}.a;",
                ".a".repeat(few.saturating_sub(1))
            );
        }
        5 => {
            each(few, &|i| {
                format!(
                    "struct E{i} {{ a: E{}, b: E{}, }}\nconst e{i} = E{i}(e{}, e{});",
                    i - 1,
                    i - 1,
                    i - 1,
                    i - 1
                )
            });
            text.insert_str(0, "struct E0 { a: u32, }\nconst e0 = E0(1u);\n");
            body = format!("let e = e{few}; return e.a{};", ".a".repeat(few));
        }
        6 => {
            each(few, &|i| {
                format!("const p{i} = array(p{}, p{});", i - 1, i - 1)
            });
            text.insert_str(0, "const p0 = 1u;\n");
            body = format!("return p{few}{};", "[1]".repeat(few));
        }
        7 => each(count, &|i| format!("alias A{i} = array<u32, {i}>;")),
        8 => {
            let ty = format!("{}u32{}", "array<".repeat(few), ", 2>".repeat(few));
            body = format!(
                "var n: {ty}; n{} = 3u; return n{};",
                "[0]".repeat(few),
                "[1]".repeat(few)
            );
        }
        9 => {
            let _ = writeln!(text, "var<private> wide: array<u32, {}>;", count + 1);
            body = "wide[out[1]] += 1u; return wide[out[2]];".to_owned();
        }
        10 => {
            let _ = writeln!(
                text,
                "var<workgroup> tile: array<vec4<f32>, {}>;",
                count + 1
            );
            body = "tile[out[1]].y = 1.0; return u32(tile[out[2]].x);".to_owned();
        }
        11 => {
            let values = "5u, ".repeat(count);
            let _ = writeln!(text, "const table = array<u32, {}>({values}6u);", count + 1);
            body = format!("var t = table; return t[out[1] % {}u];", count + 1);
        }
        12 => {
            each(count, &|i| format!("override r{i}: u32 = r{} + 1u;", i - 1));
            text.insert_str(0, "override r0: u32 = 1u;\n");
            body = format!("return r{count};");
        }
        13 => {
            let parameters = (0..count)
                .map(|i| format!("a{i}: u32, "))
                .collect::<String>();
            let _ = writeln!(text, "fn many({parameters}) -> u32 {{ return 1u; }}");
            body = format!("return many({});", "2u, ".repeat(count));
        }
        14 => {
            let members = (0..count)
                .map(|i| format!("m{i}: vec3<u32>, "))
                .collect::<String>();
            let _ = writeln!(text, "struct Broad {{ {members} last: u32, }}");
            body = "var b: Broad; let c = b; return c.last;".to_owned();
        }
        15 => {
            let _ = writeln!(text, "{} {}", "/* ".repeat(count), "*/ ".repeat(count));
        }
        _ => {
            let name = "n".repeat(count + 1);
            let _ = writeln!(text, "fn {name}() -> u32 {{ return 3u; }}");
            body = format!("return {name}();");
        }
    }
    let _ = writeln!(text, "fn extra() -> u32 {{ {body} }}");
    text
}
