//! Connections: accepted, bounded in number and time, and ended.

use super::app::Monitor;
use super::{Limits, Stop};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

/// Bytes of a request's head at most.
const MAX_HEAD: usize = 64 << 10;
/// Between two tries to accept, where the system refuses: it may be out of files.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until it is told to end, and then those that are being answered.
pub(crate) async fn run(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: Stop,
    monitor: Arc<Monitor>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    if stop.signals {
        tokio::spawn(signals(
            stop.clone(),
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ));
    }
    let (places, watching) =
        (Arc::new(Semaphore::new(limits.connections)), GracefulShutdown::new());
    let mut told = stop.told.subscribe();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            _ = told.wait_for(|told| *told) => break,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // A token is sent as soon as it is there.
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(socket), service);
        let connection = watching.watch(connection);
        tokio::spawn(async move {
            // What goes wrong with a connection, its client knows.
            let _ = connection.await;
            drop(place);
        });
    }
    monitor.closing.store(true, Ordering::Relaxed);
    drop((listener, router));
    let _ = tokio::time::timeout(limits.answer, watching.shutdown()).await;
    Ok(())
}

/// The first signal tells it to end, the second ends it.
async fn signals(
    stop: Stop,
    mut terminate: tokio::signal::unix::Signal,
    mut interrupt: tokio::signal::unix::Signal,
) {
    let mut status = 0;
    for _ in 0..2 {
        status = tokio::select! {
            _ = terminate.recv() => 128 + 15,
            _ = interrupt.recv() => 128 + 2,
        };
        stop.stop();
    }
    std::process::exit(status);
}
