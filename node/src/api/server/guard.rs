//! Who may talk to the API at all.
//!
//! Three checks before any handler, cheapest first. The `Host` must name this
//! server: a web page that makes its own name resolve to loopback (DNS
//! rebinding) still sends that name. An `Origin` must be this server: a page
//! elsewhere has no business here. Then what the caller shows: the node's own
//! token, in constant time, which opens everything; or an API key, by its hash,
//! which opens what models are asked through.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::http::{HeaderMap, StatusCode, Uri, header, uri::Authority};

use super::problem::Problem;
use crate::{
    api::token::Token,
    keys::{Key, Keys},
    wall::wall,
};

const BEARER: &[u8] = b"Bearer ";
const DEFAULT_PORT: u16 = 80;

/// Where models are asked: what an API key opens. Below the first is each model.
const FOR_KEYS: [&str; 5] = [
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
];

/// Who calls.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Whoever has the node's own token.
    Node,
    /// Whoever has an API key.
    Key(Arc<Key>),
}

/// Why a caller is not served.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotServed {
    /// In the words of this API.
    Here(Problem),
    /// No key, or none that is good, where models are asked: said in the words of clients.
    NoKey,
}

impl From<Problem> for NotServed {
    fn from(problem: Problem) -> Self {
        Self::Here(problem)
    }
}

/// The checks of one server.
#[derive(Debug)]
pub(super) struct Guard {
    bound: SocketAddr,
    token: Token,
}

impl Guard {
    pub(super) const fn new(bound: SocketAddr, token: Token) -> Self {
        Self { bound, token }
    }

    /// Whether a request may go on to its handler, and whose it is.
    pub(super) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        keys: &Keys,
    ) -> Result<Caller, NotServed> {
        let host = self.check_host(uri, headers)?;
        check_origin(host, headers)?;
        let shown = bearer(headers);
        if shown.is_some_and(|shown| self.token.is(shown)) {
            return Ok(Caller::Node);
        }
        let key = shown.and_then(|shown| keys.find(shown, wall()));
        match (key, is_for_keys(uri.path())) {
            (Some(key), true) => Ok(Caller::Key(key)),
            (Some(_), false) => Err(Problem::not_for_keys().into()),
            (None, true) => Err(NotServed::NoKey),
            (None, false) => Err(Problem::unauthorised().into()),
        }
    }

    fn check_host<'a>(&self, uri: &Uri, headers: &'a HeaderMap) -> Result<&'a str, Problem> {
        let host = single(headers, header::HOST).filter(|host| self.is_own(host));
        // A request line with a whole address must agree.
        let own_target = uri
            .authority()
            .is_none_or(|authority| self.is_own(authority.as_str()));
        host.filter(|_| own_target).ok_or_else(|| {
            Problem::usage(
                StatusCode::FORBIDDEN,
                "the Host header does not name this server; call it by its loopback address and port",
            )
        })
    }

    fn is_own(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        port == self.bound.port() && !host.contains('@') && self.is_own_name(authority.host())
    }

    fn is_own_name(&self, name: &str) -> bool {
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(name);
        let Ok(address) = bare.parse::<IpAddr>() else {
            return false;
        };
        // Bound to every address, it has many; none of them is a name that
        // somebody else could point here.
        address.is_loopback() || address == self.bound.ip() || self.bound.ip().is_unspecified()
    }
}

/// What the caller shows, if that is one thing.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_bytes().strip_prefix(BEARER),
        _ => None,
    }
}

fn is_for_keys(path: &str) -> bool {
    FOR_KEYS.contains(&path) || path.starts_with("/v1/models/")
}

fn check_origin(host: &str, headers: &HeaderMap) -> Result<(), Problem> {
    let own_origin = match headers.get(header::ORIGIN) {
        None => true,
        Some(_) => single(headers, header::ORIGIN)
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host)),
    };
    let own_site = headers
        .get("sec-fetch-site")
        .is_none_or(|site| site == "same-origin" || site == "none");
    if own_origin && own_site {
        Ok(())
    } else {
        Err(Problem::usage(
            StatusCode::FORBIDDEN,
            "requests from other web sites are not served; use the command line, or a page of this server",
        ))
    }
}

/// A header that is there exactly once.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(bound: &str, host: &str) -> bool {
        Guard::new(bound.parse().unwrap(), Token::new("c0ffee")).is_own(host)
    }

    #[test]
    fn abuse_66_only_names_that_nobody_else_can_point_here_are_own() {
        for host in [
            "127.0.0.1:4180",
            "localhost:4180",
            "LOCALHOST:4180",
            "[::1]:4180",
            "127.8.8.8:4180",
        ] {
            assert!(own("127.0.0.1:4180", host), "{host}");
        }
        for host in [
            "",
            "127.0.0.1",
            "127.0.0.1:4181",
            "evil.example:4180",
            "localhost.evil.example:4180",
            "127.0.0.1.evil.example:4180",
            "evil@127.0.0.1:4180",
            "10.0.0.7:4180",
            "127.1:4180",
            "localhost:4180:4180",
        ] {
            assert!(!own("127.0.0.1:4180", host), "{host}");
        }
    }

    #[test]
    fn a_configured_address_is_own_too() {
        assert!(own("10.0.0.7:4180", "10.0.0.7:4180"));
        assert!(!own("10.0.0.7:4180", "10.0.0.8:4180"));
        assert!(own("0.0.0.0:4180", "10.0.0.8:4180"));
        assert!(!own("0.0.0.0:4180", "evil.example:4180"));
        assert!(own("127.0.0.1:80", "localhost"));
    }
}
