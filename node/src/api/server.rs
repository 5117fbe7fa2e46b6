//! stub
/// stub
pub async fn serve(_: crate::handle::NodeHandle, _: tokio::net::TcpListener, _: String) {}
