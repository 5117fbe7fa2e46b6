//! Client and provider over a simulated link, one test for each behaviour.

mod accounts;
mod crashes;
mod negotiation;
mod work;
mod world;
