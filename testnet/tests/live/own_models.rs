//! Models of providers' own workers, asked through a gateway.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
};

use serde_json::{Value, json};
use suanli_executor::model::testing::{small_encoder, small_model};
use suanli_node::api::types::{OfferInfo, Status};
use suanli_protocol::units::Amount;
use tempfile::TempDir;

use crate::{
    asking::{self, ask, events, models, open, total, wait_for_providers},
    network::{CLIENT, Network, eventually},
};

/// A client, and providers of rising prices, each with a worker for a model of this seed.
fn network(files: &TempDir, providers: &[(&'static str, u64)]) -> Network {
    network_with(files, providers, "")
}

/// The same, with more lines for each model.
fn network_with(files: &TempDir, providers: &[(&'static str, u64)], more: &str) -> Network {
    let ranked = (1..).zip(providers);
    let providers = ranked.map(|(rank, (name, seed))| {
        let file = files.path().join(format!("{seed}.gguf"));
        std::fs::write(&file, small_model(*seed)).unwrap();
        let settings = format!(
            "[provide]\nslots = 1\n[[provide.model]]\nname = \"small\"\nfile = \"{}\"\n\
             price_in = \"{rank}\"\nprice_out = \"{}\"\nthreads = 1\n{more}",
            file.display(),
            rank * 10
        );
        (*name, settings)
    });
    asking::network(providers.collect())
}

/// Who names other weights than those of its file, and is the cheapest, is asked no more once
/// two others have doubted an answer, and has lost its standing.
#[test]
fn live_who_serves_another_model_than_it_names_is_found_and_left() {
    let files = TempDir::new().unwrap();
    let mut nodes = vec![
        asking::node(CLIENT, "CN-BJ", "audit_percent = 100\n"),
        asking::node(
            "cheat",
            "CN-NX",
            "[provide]\nslots = 1\n[[provide.price]]\nmeter = \"gpu.ms\"\namount = \"0.50\"\n\
             per = 3600000\n",
        ),
    ];
    let file = files.path().join("1.gguf");
    std::fs::write(&file, small_model(1)).unwrap();
    let file = file.to_str().unwrap();
    for (price, name) in [(2, "second"), (3, "third")] {
        let settings = format!(
            "[provide]\nslots = 1\n[[provide.model]]\nname = \"small\"\nfile = \"{file}\"\n\
             price_in = \"{price}\"\nprice_out = \"{}\"\nthreads = 1\n",
            price * 10
        );
        nodes.push(asking::node(name, "CN-NX", &settings));
    }
    let mut network = Network::of(nodes);
    let prices = ["--price-in", "1", "--price-out", "10", "--threads", "1"];
    let add = [&["model", "add", file, "--name", "small"], &prices[..]].concat();
    let added = network.suanli("cheat", &add);
    assert!(added.status.success(), "{added:?}");
    changes_its_file(&mut network, "cheat", (1, 2));
    wait_for_providers(&network, 3);
    let text = || {
        let (status, body) = ask(&network, &question(60, 1.0, false));
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let text = answer["choices"][0]["message"]["content"].as_str();
        text.unwrap().to_owned()
    };
    let first = text();
    assert!(total(&network, "third") == Amount::ZERO && !first.is_empty());
    let other = eventually("another provider answers", || {
        let now = text();
        (now != first).then_some(now)
    });
    // Whose answers are right is asked again and again.
    for _ in 0..5 {
        assert_eq!(text(), other);
    }
    let standing = |name: &str| {
        let peer = network.api(name).get::<Status>("/v1/status").unwrap().peer;
        let path = format!("/v1/offers/{peer:#}");
        network
            .api(CLIENT)
            .get::<OfferInfo>(&path)
            .unwrap()
            .standing
    };
    let cheats = standing("cheat").unwrap();
    assert!(
        cheats.contradicted > 0 && cheats.left_out_until_ms.is_some(),
        "{cheats:?}"
    );
    for name in ["second", "third"] {
        assert!(standing(name).is_none_or(|standing| standing.contradicted == 0));
    }
}

/// A file on the shelf goes by its name: another one is put in its place.
fn changes_its_file(network: &mut Network, name: &str, (old, new): (u64, u64)) {
    let node = network.testnet.node_mut(name).unwrap();
    node.stop().unwrap();
    let hash = blake3::hash(&small_model(old)).to_hex();
    let shelf = node.data_dir().join("models");
    let kept = std::fs::read_dir(&shelf).unwrap();
    let kept = kept.map(|entry| entry.unwrap().path());
    for path in kept.filter(|path| path.to_string_lossy().contains(hash.as_str())) {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, small_model(new)).unwrap();
    }
    network.testnet.restart(name).unwrap();
}

/// Without a temperature a random model comes to no end by itself.
fn question(tokens: u32, temperature: f32, streams: bool) -> Value {
    json!({
        "model": "small",
        "stream": streams,
        "stream_options": { "include_usage": true },
        "max_tokens": tokens,
        "temperature": temperature,
        "seed": 7,
        "messages": [{ "role": "user", "content": "who are you" }],
    })
}

fn text_of(events: &[Value]) -> String {
    let pieces = events
        .iter()
        .map(|event| event["choices"][0]["delta"]["content"].as_str());
    pieces.map(Option::unwrap_or_default).collect()
}

#[test]
fn live_a_model_of_a_providers_own_answers_whole_and_streamed() {
    let files = TempDir::new().unwrap();
    let network = network(&files, &[("seller", 1)]);
    wait_for_providers(&network, 1);
    let listed = &models(&network)[0]["providers"][0];
    assert_eq!(listed["context"], 4096);
    assert_eq!(listed["quantisation"], "Q8_0");
    let hash = blake3::hash(&small_model(1)).to_hex();
    assert_eq!(listed["weights"], hash.as_str());

    let (status, body) = ask(&network, &question(40, 1.5, false));
    assert_eq!(status, 200, "{body}");
    let whole: Value = serde_json::from_str(&body).unwrap();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(whole["choices"][0]["finish_reason"], "length", "{whole}");
    assert_eq!(whole["usage"]["completion_tokens"], 40);

    let (status, body) = ask(&network, &question(40, 1.5, true));
    assert_eq!(status, 200);
    let streamed = events(&body);
    assert_eq!(text_of(&streamed), text);
    assert_eq!(streamed[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(streamed.last(), Some(&json!("[DONE]")));
    assert_eq!(streamed[streamed.len() - 2]["usage"], whole["usage"]);

    let mut wrong = question(40, 1.5, false);
    wrong["suffix"] = json!("x");
    let (status, body) = ask(&network, &wrong);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("leave it out"), "{body}");

    let read = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    let due = Amount::from_micros(2 * (read + 10 * 40));
    eventually("all is paid, on both sides", || {
        let totals = [CLIENT, "seller"].map(|node| total(&network, node));
        (totals == [due, due]).then_some(())
    });
}

/// As `POST /v1/embeddings` answers.
fn embed(network: &Network, question: &Value) -> (u16, Value) {
    let path = "/v1/embeddings";
    let (status, body) = asking::request(network.node(CLIENT), "POST", path, Some(question));
    (status, serde_json::from_str(&body).unwrap())
}

/// A client, and a provider with an encoder and a model that writes.
fn with_encoder(files: &TempDir) -> Network {
    let file = files.path().join("encoder.gguf");
    std::fs::write(&file, small_encoder(1)).unwrap();
    let talker = files.path().join("talker.gguf");
    std::fs::write(&talker, small_model(1)).unwrap();
    let model = |name, file: &std::path::Path| {
        let file = file.display();
        format!(
            "[[provide.model]]\nname = \"{name}\"\nfile = \"{file}\"\nprice_in = \"1\"\n\
             price_out = \"0\"\nthreads = 1\n"
        )
    };
    let models = [model("small", &talker), model("encoder", &file)].concat();
    let settings = format!("[provide]\nslots = 1\n{models}");
    let network = asking::network(vec![("seller", settings)]);
    eventually("both are served", || {
        (self::models(&network).len() == 2).then_some(())
    });
    network
}

/// What is no question for the model that it names.
fn refuses_wrong_questions(network: &Network, long: &str) {
    for (asked, param, said) in [
        (
            json!({ "model": "encoder", "input": long }),
            "input",
            "92 tokens, and this model reads 40",
        ),
        (
            json!({ "model": "encoder", "input": ["a", ""] }),
            "input",
            "input[1]",
        ),
        (
            json!({ "model": "encoder", "input": "a", "dimensions": 3 }),
            "dimensions",
            "96",
        ),
        (
            json!({ "model": "small", "input": "a" }),
            "model",
            "no embeddings",
        ),
    ] {
        let (status, answer) = embed(network, &asked);
        let error = &answer["error"];
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{answer}");
        assert!(
            error["message"].as_str().unwrap().contains(said),
            "{answer}"
        );
    }
    let mut talk = question(5, 0.0, false);
    talk["model"] = "encoder".into();
    let (status, body) = ask(network, &talk);
    assert!(status == 400 && body.contains("/v1/embeddings"), "{body}");
}

#[test]
fn live_an_encoder_of_a_providers_own_gives_embeddings() {
    let files = TempDir::new().unwrap();
    let network = with_encoder(&files);
    let texts = ["a cafe", "the unfort", "x".repeat(90).as_str()].map(str::to_owned);
    let (status, answer) = embed(
        &network,
        &json!({ "model": "encoder", "input": texts[..2] }),
    );
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("encoder"))
    );
    // Each text's pieces, and what begins and ends it.
    assert_eq!(
        answer["usage"],
        json!({ "prompt_tokens": 9, "total_tokens": 9 })
    );
    let vector = answer["data"][1]["embedding"].as_array().unwrap();
    assert_eq!((vector.len(), &answer["data"][1]["index"]), (96, &json!(1)));
    let (_, alone) = embed(&network, &json!({ "model": "encoder", "input": texts[1] }));
    assert_eq!(
        alone["data"][0]["embedding"],
        answer["data"][1]["embedding"]
    );
    let (_, coded) = embed(
        &network,
        &json!({ "model": "encoder", "input": texts[1], "encoding_format": "base64" }),
    );
    assert_eq!(
        coded["data"][0]["embedding"].as_str().unwrap().len(),
        4 * 96 * 4 / 3
    );

    refuses_wrong_questions(&network, &texts[2]);
    // Two texts of 9 tokens, and twice one of them.
    let read = 9 + 2 * 5;
    eventually("all is paid, on both sides", || {
        let totals = [CLIENT, "seller"].map(|node| total(&network, node));
        (totals == [Amount::from_micros(read); 2]).then_some(())
    });
}

/// All events of an answer whose provider, the first, is killed in the middle.
fn heard_though_killed(network: &mut Network, question: &Value) -> Vec<Value> {
    let stream = open(
        network.node(CLIENT),
        "POST",
        "/v1/chat/completions",
        Some(question),
    );
    let mut reader = BufReader::new(stream);
    let mut body = String::new();
    while !body.contains("\"content\":\"") || body.lines().count() < 40 {
        assert!(reader.read_line(&mut body).unwrap() > 0, "{body}");
    }
    network.testnet.node_mut("first").unwrap().kill().unwrap();
    reader.read_to_string(&mut body).unwrap();
    let (_, body) = body.split_once("\r\n\r\n").unwrap();
    events(&asking::unchunked(body))
}

/// A question whose answer is JSON by a schema: so many words, each one of two.
fn of_form(count: u32, streams: bool) -> Value {
    let mut question = question(4000, 1.0, streams);
    question["response_format"] = json!({ "type": "json_schema", "json_schema": {
        "name": "hot", "strict": true,
        "schema": { "type": "array", "items": { "enum": ["hot", "cold"] },
                    "minItems": count, "maxItems": count },
    } });
    question
}

#[test]
fn live_an_answer_of_a_form_keeps_it_when_its_provider_is_killed() {
    const COUNT: u32 = 250;
    let files = TempDir::new().unwrap();
    let mut network = network(&files, &[("first", 1), ("second", 1)]);
    wait_for_providers(&network, 2);
    let events = heard_though_killed(&mut network, &of_form(COUNT, true));
    let text = text_of(&events);
    let words: Vec<String> = serde_json::from_str(&text).unwrap();
    assert_eq!(words.len(), usize::try_from(COUNT).unwrap());
    assert!(words.iter().all(|word| word == "hot" || word == "cold"));
    let finish = &events[events.len() - 3]["choices"][0]["finish_reason"];
    assert_eq!(finish, "stop", "{:#?}", events.last_chunk::<4>());
    let (_, whole) = ask(&network, &of_form(COUNT, false));
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    eventually("the second is paid", || {
        (total(&network, "second") > Amount::ZERO).then_some(())
    });
}

#[test]
fn live_tools_are_called_likelihoods_told_and_several_answers_given() {
    let files = TempDir::new().unwrap();
    let network = network(&files, &[("seller", 1)]);
    wait_for_providers(&network, 1);
    let mut due = 0;
    let mut answered = |path: &str, question: &Value| -> Value {
        let node = network.node(CLIENT);
        let (status, body) = asking::request(node, "POST", path, Some(question));
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let usage = &answer["usage"];
        let count = |name: &str| usage[name].as_u64();
        let read = count("prompt_tokens")
            .or_else(|| count("input_tokens"))
            .unwrap();
        let written = count("completion_tokens")
            .or_else(|| count("output_tokens"))
            .unwrap();
        due += read + 10 * written;
        answer
    };
    let schema = json!({ "type": "object", "properties": { "hot": { "type": "boolean" } },
                         "required": ["hot"], "additionalProperties": false });
    let chat = "/v1/chat/completions";

    let mut asked = question(200, 1.0, false);
    asked["tools"] = json!([{ "type": "function",
                              "function": { "name": "weather", "parameters": schema } }]);
    asked["tool_choice"] = json!("required");
    asked["parallel_tool_calls"] = json!(false);
    let answer = answered(chat, &asked);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "weather");
    let is_hot = |text: &Value| -> bool {
        let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        value["hot"].as_bool().unwrap()
    };
    is_hot(&call["arguments"]);

    let mut several = question(20, 1.5, false);
    several["n"] = json!(3);
    several["logprobs"] = json!(true);
    several["top_logprobs"] = json!(2);
    let answer = answered(chat, &several);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let tokens = choices.iter().map(|choice| {
        let told = choice["logprobs"]["content"].as_array().unwrap();
        assert!(
            told.iter()
                .all(|one| one["top_logprobs"].as_array().unwrap().len() == 2)
        );
        u64::try_from(told.len()).unwrap()
    });
    assert_eq!(answer["usage"]["completion_tokens"], tokens.sum::<u64>());

    let tool = json!({ "type": "function", "name": "weather", "parameters": schema });
    let response = answered(
        "/v1/responses",
        &json!({ "model": "small", "input": "hot?", "tools": [tool], "tool_choice": "required",
                 "parallel_tool_calls": false }),
    );
    assert_eq!(response["status"], "completed");
    is_hot(&response["output"][0]["arguments"]);

    let due = Amount::from_micros(due);
    eventually("all is paid, on both sides", || {
        let totals = [CLIENT, "seller"].map(|node| total(&network, node));
        (totals == [due, due]).then_some(())
    });
}

#[test]
fn live_an_answer_goes_on_when_its_provider_is_killed() {
    const TOKENS: u32 = 2500;
    let files = TempDir::new().unwrap();
    // The third has another model of the same name, and may not go on.
    let mut network = network(&files, &[("first", 1), ("other", 2), ("second", 1)]);
    wait_for_providers(&network, 3);
    let events = heard_though_killed(&mut network, &question(TOKENS, 0.0, true));
    let usage = &events[events.len() - 2]["usage"];
    assert_eq!(
        usage["completion_tokens"],
        TOKENS,
        "{:#?}",
        events.last_chunk::<4>()
    );
    let ids: Vec<&Value> = events[..events.len() - 1]
        .iter()
        .map(|event| &event["id"])
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]));

    let (_, whole) = ask(&network, &question(TOKENS, 0.0, false));
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(
        whole["choices"][0]["message"]["content"],
        text_of(&events),
        "what went on is not what would have been said"
    );
    assert_eq!(total(&network, "other"), Amount::ZERO);
    eventually("the second is paid for more than the whole answer", || {
        let whole = Amount::from_micros(30 * u64::from(TOKENS));
        (total(&network, "second") > whole).then_some(())
    });
}

/// Whose places are all taken is left for another, whoever goes on with a conversation stays
/// where it was, and where nobody has a place, questions wait.
#[test]
fn live_questions_go_where_there_is_a_place_and_conversations_stay() {
    let files = TempDir::new().unwrap();
    let providers = [("first", 1), ("second", 2)];
    let network = network_with(&files, &providers, "places = 2\n");
    wait_for_providers(&network, 2);
    let begin = |tokens: u32| {
        let question = question(tokens, 0.0, true);
        let (node, path) = (network.node(CLIENT), "/v1/chat/completions");
        let mut stream = BufReader::new(open(node, "POST", path, Some(&question)));
        let mut line = String::new();
        while !line.contains("content") {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0);
        }
        stream
    };
    let end = |mut stream: BufReader<TcpStream>| {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("[DONE]"), "{rest}");
    };
    // The third finds no place with the cheaper one, and the fifth with nobody.
    let long: Vec<_> = (0..4).map(|_| begin(3000)).collect();
    let waited = begin(3);
    long.into_iter().chain([waited]).for_each(end);
    eventually("both are paid", || {
        let is_paid = |(name, _)| total(&network, name) > Amount::ZERO;
        providers.into_iter().all(is_paid).then_some(())
    });
    let text = || {
        let (status, body) = ask(&network, &question(20, 0.0, false));
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        answer["choices"][0]["message"]["content"].clone()
    };
    // The other one has less to do, and would say something else.
    let before = text();
    let beside = begin(3000);
    assert_eq!(text(), before);
    end(beside);
}

#[test]
fn live_a_model_is_served_from_when_it_is_added_until_it_is_removed() {
    let files = TempDir::new().unwrap();
    let network = network(&files, &[("seller", 1)]);
    wait_for_providers(&network, 1);
    let file = files.path().join("late.gguf");
    std::fs::write(&file, small_model(3)).unwrap();
    let file = file.to_str().unwrap();
    let prices = ["--price-in", "1", "--price-out", "10", "--threads", "1"];
    let add = [
        &["--json", "model", "add", file, "--name", "late"],
        &prices[..],
    ]
    .concat();
    let added = network.suanli("seller", &add);
    assert!(added.status.success(), "{added:?}");
    let added: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!(added["served"], true, "{added}");
    let names = || -> Vec<Value> { models(&network).iter().map(|it| it["id"].clone()).collect() };
    eventually("the client knows of both", || {
        (names() == ["late", "small"]).then_some(())
    });
    let mut late = question(20, 1.5, false);
    late["model"] = json!("late");
    let mut due = 0;
    let mut answered = |question: &Value| {
        let (status, body) = ask(&network, question);
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let used = |what: &str| answer["usage"][what].as_u64().unwrap();
        due += used("prompt_tokens") + 10 * used("completion_tokens");
    };
    answered(&late);
    answered(&question(20, 1.5, false));

    let removed = network.suanli("seller", &["model", "remove", "late"]);
    assert!(removed.status.success(), "{removed:?}");
    eventually("the client knows of one", || {
        (names() == ["small"]).then_some(())
    });
    let (status, body) = ask(&network, &late);
    assert_eq!(status, 404, "{body}");
    answered(&question(20, 1.5, false));
    let due = Amount::from_micros(due);
    eventually(
        "what was used of both is paid, and nothing is disputed",
        || {
            let totals = [CLIENT, "seller"].map(|node| total(&network, node));
            (totals == [due, due]).then_some(())
        },
    );
}
