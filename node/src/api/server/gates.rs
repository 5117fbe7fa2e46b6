//! How much at once.
//!
//! A gate for each kind of request, so that a flood of one kind leaves the
//! others alive: whoever uploads or lists without end can still be stopped by
//! a `cancel` or a `shutdown`. A request that finds its gate full is refused
//! at once; nothing queues. The connections themselves are bounded too.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::problem::Problem;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// Small questions and orders to the driver.
const CONTROLS: usize = 128;
/// Questions to the store, each of which reads and verifies records.
const LOOKUPS: usize = 32;
/// Uploads: each holds a thread and a file.
const UPLOADS: usize = 8;
/// Event streams and downloads.
const STREAMS: usize = 128;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Control,
    Lookup,
    Upload,
    Stream,
}

/// The gates of one server.
#[derive(Debug)]
pub(super) struct Gates {
    controls: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Gates {
    pub(super) fn new() -> Self {
        let gate = |permits| Arc::new(Semaphore::new(permits));
        Self {
            controls: gate(CONTROLS),
            lookups: gate(LOOKUPS),
            uploads: gate(UPLOADS),
            streams: gate(STREAMS),
        }
    }

    /// A place until the permit is dropped.
    pub(super) fn enter(&self, gate: Gate) -> Result<OwnedSemaphorePermit, Problem> {
        let (semaphore, what) = match gate {
            Gate::Control => (&self.controls, "requests"),
            Gate::Lookup => (&self.lookups, "questions to the store"),
            Gate::Upload => (&self.uploads, "uploads"),
            Gate::Stream => (&self.streams, "streams"),
        };
        Arc::clone(semaphore)
            .try_acquire_owned()
            .map_err(|_| Problem::too_many(what))
    }
}

/// A listener that accepts so many connections at once.
#[derive(Debug)]
pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are small and awaited.
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            stream,
            _place: place,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that holds its place.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
