//! `[[verify.product]]`: outputs that are products of inputs, to be checked as such.
//!
//! Names become the numbers of a unit's inputs here, as the program counts them, and sizes
//! are held against those of its buffers: what a node is then told fits, and a result that
//! does not is its provider's fault.

use std::ops::Range;

use serde::Deserialize;
use suanli_executor::{
    Program,
    file::OutputFile,
    spec::{Buffer, Content},
};
use suanli_protocol::{
    freivalds::{FreivaldsError, Matrix, Numbers, Product},
    limits::{FREIVALDS_ROUNDS_MAX, PRODUCTS_MAX},
    offer::Name,
    tolerance::Tolerance,
};
use toml::Spanned;

use crate::{
    api::types::{FreivaldsOrder, NumberType, ProductOrder},
    document::{Document, Mistake, allowed},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProductToml {
    left: Spanned<String>,
    right: Spanned<String>,
    product: Spanned<String>,
    rows: Spanned<u32>,
    inner: Spanned<u32>,
    columns: Spanned<u32>,
    #[serde(default, rename = "type")]
    numbers: NumberType,
    tolerance: Option<Spanned<f32>>,
}

/// What products are checked against.
pub(super) struct Against<'a> {
    pub(super) document: &'a Document,
    pub(super) program: &'a Program,
    pub(super) outputs: &'a [OutputFile],
}

/// The rounds, and what they are made for.
pub(super) fn resolve(
    against: &Against<'_>,
    rounds: Option<&Spanned<u8>>,
    products: &[Spanned<ProductToml>],
) -> Result<Option<FreivaldsOrder>, Mistake> {
    let wrong = |at: Range<usize>, message: &str| Err(against.document.mistake(Some(at), message));
    let rounds = match (rounds, products) {
        (None, []) => return Ok(None),
        (Some(rounds), [_, ..]) => rounds,
        (Some(rounds), []) => {
            let message = "verify.freivalds: no output is said to be a product; add a [[verify.product]], or leave it out";
            return wrong(rounds.span(), message);
        }
        (None, [first, ..]) => {
            let message = "verify.product needs the number of rounds, `freivalds = 20` in [verify]";
            return wrong(first.span(), message);
        }
    };
    if !(1..=FREIVALDS_ROUNDS_MAX).contains(rounds.get_ref()) {
        let message = format!("verify.freivalds: {}", FreivaldsError::Rounds);
        return wrong(rounds.span(), &message);
    }
    if let Some(beyond) = products.get(PRODUCTS_MAX) {
        let message = format!("verify.product: {}", FreivaldsError::Products);
        return wrong(beyond.span(), &message);
    }
    let mut resolved: Vec<ProductOrder> = Vec::with_capacity(products.len());
    for product in products {
        let order = against.product(product)?;
        if resolved.iter().any(|other| other.product == order.product) {
            let message = format!("verify.product: `{}` is there twice", order.product);
            return wrong(product.get_ref().product.span(), &message);
        }
        resolved.push(order);
    }
    Ok(Some(FreivaldsOrder {
        rounds: *rounds.get_ref(),
        products: resolved,
    }))
}

impl Against<'_> {
    fn wrong<T>(&self, at: Range<usize>, message: impl Into<String>) -> Result<T, Mistake> {
        Err(self.document.mistake(Some(at), message))
    }

    fn product(&self, toml: &Spanned<ProductToml>) -> Result<ProductOrder, Mistake> {
        let of = toml.get_ref();
        let Program::Wgsl(graph) = self.program else {
            let message = "verify.product: only runtime = \"wgsl\" has buffers that are matrices; a wasm job can have `replicas` or `audit`, whose results are the same to the last bit";
            return self.wrong(toml.span(), message);
        };
        let output = self.output(&of.product)?;
        let (rows, inner, columns) = (&of.rows, &of.inner, &of.columns);
        let product = Product {
            left: 0,
            right: 0,
            output: Name::lossy(&output.name),
            rows: *rows.get_ref(),
            inner: *inner.get_ref(),
            columns: *columns.get_ref(),
            numbers: self.numbers(of)?,
        };
        if let Err(error) = product.check() {
            return self.wrong(rows.span(), format!("verify.product: {error}"));
        }
        let factor = |key: &str, name: &Spanned<String>, matrix, sides: [(&str, u32); 2]| {
            let (number, buffer) = self.factor(key, name, &graph.buffers)?;
            let place = (key, &**name.get_ref(), name.span());
            self.check_size(place, buffer.size, product.bytes(matrix), sides)?;
            Ok::<u16, Mistake>(number)
        };
        let rows = ("rows", product.rows);
        let inner = ("inner", product.inner);
        let columns = ("columns", product.columns);
        let place = ("product", &*output.name, of.product.span());
        let bytes = product.bytes(Matrix::Product);
        self.check_size(place, output.bytes, bytes, [rows, columns])?;
        Ok(ProductOrder {
            left: factor("left", &of.left, Matrix::Left, [rows, inner])?,
            right: factor("right", &of.right, Matrix::Right, [inner, columns])?,
            product: output.name.clone(),
            rows: product.rows,
            inner: product.inner,
            columns: product.columns,
            numbers: of.numbers,
            tolerance: of.tolerance.as_ref().map(|tolerance| *tolerance.get_ref()),
        })
    }

    fn numbers(&self, of: &ProductToml) -> Result<Numbers, Mistake> {
        let Some(tolerance) = &of.tolerance else {
            return Ok(match of.numbers {
                NumberType::F32 => Numbers::Floats { error: None },
                NumberType::I32 | NumberType::U32 => Numbers::Integers,
            });
        };
        if of.numbers != NumberType::F32 {
            let message = "verify.product.tolerance: integers are exact; leave it out";
            return self.wrong(tolerance.span(), message);
        }
        match Tolerance::new(*tolerance.get_ref(), 0.0) {
            Ok(error) => Ok(Numbers::Floats { error: Some(error) }),
            Err(_) => {
                let message = "verify.product.tolerance: more than 0 and less than 1 is allowed, as in `tolerance = 1e-6`";
                self.wrong(tolerance.span(), message)
            }
        }
    }

    fn output(&self, name: &Spanned<String>) -> Result<&OutputFile, Mistake> {
        let known = self.outputs.iter();
        match known.clone().find(|output| output.name == *name.get_ref()) {
            Some(output) if output.png.is_none() => Ok(output),
            Some(output) => {
                let message = format!(
                    "verify.product.product: output `{}` is a picture of bytes",
                    output.name
                );
                self.wrong(name.span(), message)
            }
            None => {
                let known = known.map(|output| output.name.as_str());
                let hint = allowed(name.get_ref(), known);
                let name_there = name.get_ref().escape_debug();
                let message = format!("verify.product.product: no output `{name_there}`; {hint}");
                self.wrong(name.span(), message)
            }
        }
    }

    /// A buffer that is filled by an input, and the input's number.
    fn factor<'b>(
        &self,
        key: &str,
        name: &Spanned<String>,
        buffers: &'b [Buffer],
    ) -> Result<(u16, &'b Buffer), Mistake> {
        let input = |buffer: &Buffer| match buffer.content {
            Content::Input { index, .. } => u16::try_from(index).ok(),
            Content::Inline(_) | Content::Zeroed => None,
        };
        let there = buffers
            .iter()
            .find(|buffer| *buffer.name == **name.get_ref());
        let Some(buffer) = there else {
            let files = buffers.iter().filter(|buffer| input(buffer).is_some());
            let hint = allowed(name.get_ref(), files.map(|buffer| &*buffer.name));
            let name_there = name.get_ref().escape_debug();
            let message = format!("verify.product.{key}: no buffer `{name_there}`; {hint}");
            return self.wrong(name.span(), message);
        };
        let (Some(number), Content::Input { length, .. }) = (input(buffer), &buffer.content) else {
            let message = format!(
                "verify.product.{key}: buffer `{}` has no `file`; your node checks the product of files that it has",
                &*buffer.name
            );
            return self.wrong(name.span(), message);
        };
        if *length != buffer.size {
            let message = format!(
                "verify.product.{key}: buffer `{}` has {} bytes and its file {length}; without `size` it has as many",
                &*buffer.name, buffer.size
            );
            return self.wrong(name.span(), message);
        }
        Ok((number, buffer))
    }

    fn check_size(
        &self,
        (key, name, at): (&str, &str, Range<usize>),
        bytes: u64,
        needed: u64,
        [(of_rows, rows), (of_columns, columns)]: [(&str, u32); 2],
    ) -> Result<(), Mistake> {
        if bytes == needed {
            return Ok(());
        }
        let message = format!(
            "verify.product.{key}: `{name}` has {bytes} bytes, and `{of_rows}` × `{of_columns}` numbers, {rows} × {columns}, have {needed}"
        );
        self.wrong(at, message)
    }
}
