//! Connections: how many, how long they may be silent, and how they end.
//!
//! Whoever can connect is a stranger until a whole request head is there, so what a connection may
//! cost before that is small: a place among [`CONNECTIONS`], a buffer of [`BUFFER_BYTES`], and
//! [`HEAD_WAIT`] for the head. The same wait ends a connection that is kept open and not used. A
//! caller that does not read its answer loses it after [`WRITE_WAIT`]; how fast a body must come
//! is its reader's business.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Sleep, sleep, timeout},
};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: u32 = 512;
/// The largest request head, and what is read ahead of a body.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a request's head may take to come, and a connection may idle.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// How long a caller may take none of its answer.
const WRITE_WAIT: Duration = Duration::from_secs(10);
/// How long open requests may take to end once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Serves connections until the server stops, and then ends what is open.
pub(super) async fn serve(
    mut listener: TcpListener,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS as usize));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            let (stream, _) = Listener::accept(&mut listener).await;
            (stream, place)
        };
        let (stream, place) = tokio::select! {
            next = next => next,
            // An error means that nobody could stop it any more: it is over too.
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let stopped = stopped.clone();
        tokio::spawn(async move {
            serve_one(stream, service, stopped).await;
            drop(place);
        });
    }
    drop(listener);
    let all_ended = places.acquire_many(CONNECTIONS);
    let _ = timeout(STOP_GRACE, all_ended).await;
}

async fn serve_one(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    mut stopped: watch::Receiver<bool>,
) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let stream = Unstalled {
        stream,
        stalled: None,
    };
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WAIT)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stop => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the API failed");
    }
}

/// A connection on which writing fails when the other side takes nothing for too long.
struct Unstalled {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Unstalled {
    fn within_wait(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(WRITE_WAIT)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Unstalled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unstalled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.within_wait(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.within_wait(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{io::AsyncWriteExt as _, time::Instant};

    use super::*;

    #[tokio::test]
    async fn abuse_06_a_caller_that_takes_nothing_loses_its_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let idle = TcpStream::connect(listener.local_addr().unwrap());
        let (idle, accepted) = tokio::join!(idle, listener.accept());
        let mut answering = Unstalled {
            stream: accepted.unwrap().0,
            stalled: None,
        };
        tokio::time::pause();
        let since = Instant::now();
        let error = loop {
            if let Err(error) = answering.write_all(&[0; 64 * 1024]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(since.elapsed() < WRITE_WAIT + Duration::from_secs(1));
        drop(idle);
    }
}
