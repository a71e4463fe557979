//! What the server refuses, it refuses in kube-apiserver's words: `refusals.json` holds requests to version 1.20.2 with
//! nodes `n1` to `n5`, and its answers. `{revision}` and `{token}` stand for those of the first page of two.

use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;

#[derive(Deserialize)]
struct Recorded {
    request: (String, String),
    /// `user` is known and may do nothing, `admin` may do all.
    token: String,
    r#type: String,
    body: String,
    status: Value,
}

#[test]
fn refusals_are_the_real_servers() {
    let rows: Vec<Recorded> = serde_json::from_str(include_str!("refusals.json")).unwrap();
    let mut codes = Vec::new();
    for row in rows {
        let mut client = Client::with_nodes(5);
        let page = client.get("/api/v1/nodes?limit=2").body;
        let metadata = |field: &str| page["metadata"][field].as_str().unwrap().to_owned();
        let (revision, token) = (metadata("resourceVersion"), metadata("continue"));
        let filled = |text: &str| {
            text.replace("{revision}", &revision)
                .replace("{token}", &token)
        };
        client.server.require_tokens(&["user", "admin"]);
        if row.token == "user" {
            for (verb, resource) in [
                ("get", "nodes"),
                ("list", "nodes"),
                ("watch", "nodes"),
                ("patch", "nodes/status"),
                ("get", "pods"),
            ] {
                client.server.deny(verb, resource);
            }
        }
        client.token = Some(row.token);
        let (method, path) = &row.request;
        if row.status["code"] == 410 {
            client.server.advance(1);
            client.server.compact();
        }
        let method = method.parse::<Method>().unwrap();
        let answer = client.request(method, &filled(path), &row.r#type, &row.body);
        let answer = answer.unwrap();
        let expected: Value = serde_json::from_str(&filled(&row.status.to_string())).unwrap();
        assert_eq!(answer.body, expected, "{path}");
        assert_eq!(row.status["code"], answer.code, "{path}");
        codes.push(answer.code);
    }
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes, [400, 401, 403, 404, 405, 409, 410, 415, 422, 504]);
}
