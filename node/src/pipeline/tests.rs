use super::*;

const TWO: &str = r#"name = "two"

[[job]]
name = "first"
runtime = "wgsl"
[job.limits]
run = "10s"
[job.wgsl]
source = "a.wgsl"
[[job.wgsl.buffer]]
name = "out"
size = 16
[[job.wgsl.pass]]
entry = "main"
bind = ["out"]
workgroups = [1]
[[job.wgsl.output]]
buffer = "out"
file = "out.u32"

[[job]]
name = "second"
needs = [
    "first",
]
runtime = "wgsl"
[job.wgsl]
source = "a.wgsl"
[[job.wgsl.buffer]]
name = "in"
file = "@first/out.u32"
[[job.wgsl.pass]]
entry = "main"
bind = ["in"]
workgroups = [1]
[[job.wgsl.output]]
buffer = "in"
file = "same.u32"
"#;

/// The pipeline that a text is, beside a program, and what a check of it says.
fn checked(text: &str) -> Result<Vec<PreparedJob>, String> {
    let folder = tempfile::tempdir().unwrap();
    let program = "@group(0) @binding(0) var<storage, read_write> b: array<u32>;
        @compute @workgroup_size(1) fn main() { b[0] = 1u; }";
    std::fs::write(folder.path().join("a.wgsl"), program).unwrap();
    let path = folder.path().join("job.toml");
    std::fs::write(&path, text).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let read = Pipeline::read(&path).map(|read| read.expect("a pipeline"));
    let checked = read.and_then(|pipeline| pipeline.check(scratch.path()));
    let jobs = checked.map_err(|error| error.to_string())?;
    Ok(jobs.into_iter().flatten().collect())
}

#[test]
fn a_stage_is_read_as_a_job_file_is() {
    let jobs = checked(TWO).unwrap();
    let names: Vec<_> = jobs.iter().map(|job| &*job.name).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(jobs[0].run.as_secs(), 10);
    assert_eq!(jobs[1].inputs[0].length, 16);
}

#[test]
fn what_is_needed_comes_first_however_it_is_written() {
    let at = TWO.find("[[job]]\nname = \"second\"").unwrap();
    let (first, second) = TWO.split_at(at);
    let (head, first) = first.split_at(first.find("[[job]]").unwrap());
    let jobs = checked(&format!("{head}{second}{first}")).unwrap();
    let names: Vec<_> = jobs.iter().map(|job| &*job.name).collect();
    assert_eq!(names, ["first", "second"]);
}

#[test]
fn a_single_job_is_no_pipeline() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/noop/job.toml");
    assert!(Pipeline::read(&path).unwrap().is_none());
}

#[test]
fn the_example_can_run() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pipeline/job.toml");
    let pipeline = Pipeline::read(&path).unwrap().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let jobs = pipeline.check(scratch.path()).unwrap();
    assert!(jobs.iter().all(Option::is_some));
    assert_eq!(pipeline.stages[1].needs, ["parts"]);
}

#[test]
fn mistakes_have_their_line_and_what_is_allowed() {
    // What is changed, into what, which line then is wrong, and what is said.
    for (from, to, at, says) in [
        (
            "    \"first\",",
            "    \"frist\",",
            "    \"frist\"",
            "did you mean `first`?",
        ),
        (
            "name = \"second\"",
            "name = \"first\"",
            "name = \"first\"\nneeds",
            "two jobs are called",
        ),
        (
            "name = \"second\"",
            "name = \"a/b\"",
            "name = \"a/b\"",
            "letters, digits",
        ),
        (
            "@first/out.u32",
            "@first/uot.u32",
            "file = \"@first",
            "did you mean `out.u32`?",
        ),
        (
            "    \"first\",\n",
            "",
            "file = \"@first",
            "needs = [\"first\"]",
        ),
        (
            "name = \"two\"",
            "title = \"two\"",
            "title",
            "unknown key `title`",
        ),
        ("run = \"10s\"", "run = \"10x\"", "run = ", "no duration"),
        (
            "bind = [\"in\"]",
            "bind = [\"on\"]",
            "bind = [\"on\"]",
            "`on`",
        ),
        (
            "name = \"in\"\nfile",
            "nam = \"in\"\nfile",
            "nam = ",
            "`name`",
        ),
    ] {
        let text = TWO.replacen(from, to, 1);
        assert!(text != TWO, "{from}");
        let line = 1 + text
            .find(at)
            .map_or(0, |end| text[..end].matches('\n').count());
        let said = checked(&text).unwrap_err();
        assert!(said.contains(says), "{to}: {said}");
        assert!(
            said.contains(&format!("job.toml:{line}:")),
            "{to}, line {line}: {said}"
        );
    }
}

#[test]
fn what_stays_is_an_output_that_others_can_name() {
    let with = |stay: &str, from: &str, to: &str| {
        let text = TWO.replacen(
            "name = \"first\"\n",
            &format!("name = \"first\"\nstay = [{stay}]\n"),
            1,
        );
        let text = text.replacen(from, to, 1);
        assert!(from.is_empty() || text.contains(to), "{from}");
        checked(&text)
    };
    let jobs = with("\"out\"", "", "").unwrap();
    assert_eq!(jobs[0].staying, ["out"]);
    assert!(jobs[1].staying.is_empty());
    let file = "file = \"out.u32\"";
    for (stay, to, says) in [
        ("\"uot\"", file, "did you mean `out`?"),
        (
            "\"out\"",
            "file = \"out.u32\"\nshow = { label = \"it\", type = \"u32\" }",
            "has to come here",
        ),
        ("\"out\"", "", "give `out` a `file`"),
        (
            "\"out\"",
            "file = \"out.u32\"\n[job.verify]\nreplicas = 2\ntolerance = 1e-5\nfloats = [\"out\"]",
            "within a tolerance",
        ),
    ] {
        let second = TWO.split_once("[[job]]\nname = \"second\"").unwrap();
        let text = second.0.replacen(
            "name = \"first\"\n",
            &format!("name = \"first\"\nstay = [{stay}]\n"),
            1,
        );
        let said = checked(&text.replacen(file, to, 1)).unwrap_err();
        assert!(said.contains(says), "{said}");
        assert!(said.contains("job.toml:5:"), "{said}");
    }
}

#[test]
fn a_circle_is_named() {
    let circle = TWO.replacen(
        "name = \"first\"\n",
        "name = \"first\"\nneeds = [\"second\"]\n",
        1,
    );
    let said = checked(&circle).unwrap_err();
    assert!(
        said.contains("first, second need each other in a circle"),
        "{said}"
    );
}
