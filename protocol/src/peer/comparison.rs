//! What a driver is asked to compare or check of results, for it has their bytes.

use crate::{
    deal::BlobRef,
    freivalds::Product,
    ids::{Hash, JobId},
    tolerance::Tolerance,
};

/// Two results of one unit, by what is compared of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComparisonId {
    /// Of which job of ours.
    pub job: JobId,
    /// Which unit.
    pub unit: u32,
    /// The digests of both results, the smaller first.
    pub results: [Hash; 2],
}

/// Outputs whose floats are to be compared: those in which two results differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Its name.
    pub id: ComparisonId,
    /// How far numbers may be apart.
    pub tolerance: Tolerance,
    /// The outputs, one of each result. All have been stored, or are here.
    pub pairs: Vec<[ComparedOutput; 2]>,
}

/// A result of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResultId {
    /// Of which job of ours.
    pub job: JobId,
    /// Which unit.
    pub unit: u32,
    /// Its digest.
    pub result: Hash,
}

/// Outputs of a result that are to be the products of inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductsCheck {
    /// Its name.
    pub id: ResultId,
    /// How often each is checked.
    pub rounds: u8,
    /// What; all of it is here.
    pub products: Vec<ProductCheck>,
}

/// An output that is to be the product of two inputs. All three have as many bytes as
/// the product says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductCheck {
    /// What is said of it.
    pub product: Product,
    /// The left factor.
    pub left: BlobRef,
    /// The right factor.
    pub right: BlobRef,
    /// The output.
    pub output: ComparedOutput,
}

/// An output that is to be compared or checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedOutput {
    /// Its blob.
    pub blob: BlobRef,
    /// Its bytes, if they came with the receipt: they may be no blob yet.
    pub inline: Option<Vec<u8>>,
}
