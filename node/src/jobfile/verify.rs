//! `[verify]`: how results are compared with those of other providers, and which are
//! checked by themselves ([`products`]).

use std::ops::Range;

use serde::Deserialize;
use suanli_executor::{Program, file::OutputFile};
use suanli_protocol::{
    limits::{OUTPUTS_MAX, REPLICAS_MAX},
    registry::Runtime,
    tolerance::{Tolerance, ToleranceError},
};
use toml::Spanned;

use super::products::{self, Against, ProductToml};
use crate::{
    api::types::{VerifyOrder, WithinOrder},
    document::{Document, Mistake, allowed},
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyToml {
    replicas: Option<Spanned<u8>>,
    audit: Option<Spanned<AuditToml>>,
    tolerance: Option<Spanned<f32>>,
    absolute: Option<Spanned<f32>>,
    floats: Option<Spanned<Vec<Spanned<String>>>>,
    freivalds: Option<Spanned<u8>>,
    #[serde(default)]
    product: Vec<Spanned<ProductToml>>,
}

/// How often: a share of all units, or `"adaptive"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum AuditToml {
    Share(f64),
    Word(String),
}

impl VerifyToml {
    pub(super) fn resolve(
        &self,
        document: &Document,
        (runtime, program): (Runtime, &Program),
        outputs: &[OutputFile],
    ) -> Result<VerifyOrder, Mistake> {
        let mut order = VerifyOrder::default();
        if let Some(replicas) = &self.replicas {
            order.replicas = *replicas.get_ref();
            if !(1..=REPLICAS_MAX).contains(&u64::from(order.replicas)) {
                let message = format!("verify.replicas: 1 to {REPLICAS_MAX} are allowed");
                return Err(document.mistake(Some(replicas.span()), message));
            }
        }
        self.audit(document, &mut order)?;
        order.within = self.within(document, runtime, outputs)?;
        if let Some(tolerance) = &self.tolerance
            && order.replicas == 1
            && self.audit.is_none()
        {
            let message = "verify.tolerance: nothing is compared; add `replicas = 2` or `audit = 0.1`, or leave it out";
            return Err(document.mistake(Some(tolerance.span()), message));
        }
        let against = Against {
            document,
            program,
            outputs,
        };
        order.freivalds = products::resolve(&against, self.freivalds.as_ref(), &self.product)?;
        Ok(order)
    }

    fn audit(&self, document: &Document, order: &mut VerifyOrder) -> Result<(), Mistake> {
        let Some(audit) = &self.audit else {
            return Ok(());
        };
        let wrong = |message: &str| Err(document.mistake(Some(audit.span()), message.to_owned()));
        if order.replicas > 1 {
            return wrong("verify.replicas compares every unit already: leave `audit` out");
        }
        match audit.get_ref() {
            AuditToml::Share(share) if (0.0..=1.0).contains(share) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "thousandths of a share between 0 and 1"
                )]
                let thousandths = (share * 1000.0).round() as u16;
                if thousandths == 0 && *share > 0.0 {
                    return wrong("verify.audit: the least share is 0.001");
                }
                order.audit_per_mille = thousandths;
            }
            AuditToml::Word(word) if word == "adaptive" => order.adaptive = true,
            AuditToml::Share(_) | AuditToml::Word(_) => {
                return wrong(
                    "verify.audit: a share between 0 and 1 is needed, as in `audit = 0.1`, or \"adaptive\"",
                );
            }
        }
        Ok(())
    }

    /// The tolerance, and for which outputs.
    fn within(
        &self,
        document: &Document,
        runtime: Runtime,
        outputs: &[OutputFile],
    ) -> Result<Option<WithinOrder>, Mistake> {
        let wrong = |at: Range<usize>, message: String| Err(document.mistake(Some(at), message));
        let Some(tolerance) = &self.tolerance else {
            let absolute = self.absolute.as_ref().map(Spanned::span);
            let floats = self.floats.as_ref().map(Spanned::span);
            return match absolute.or(floats) {
                Some(at) => wrong(
                    at,
                    "`verify.absolute` and `verify.floats` need a `tolerance`, as in `tolerance = 1e-5`"
                        .into(),
                ),
                None => Ok(None),
            };
        };
        if runtime != Runtime::WGSL {
            let message = format!(
                "verify.tolerance: {runtime} gives the same bits on every machine; leave it out"
            );
            return wrong(tolerance.span(), message);
        }
        let relative = *tolerance.get_ref();
        let bound = self.absolute.as_ref();
        let absolute = bound.map_or(0.0, |absolute| *absolute.get_ref());
        if let Err(error) = Tolerance::new(relative, absolute) {
            return match (error, bound) {
                (ToleranceError::Absolute, Some(bound)) => {
                    wrong(bound.span(), format!("verify.absolute: {error}"))
                }
                _ => wrong(tolerance.span(), format!("verify.tolerance: {error}")),
            };
        }
        let Some(floats) = &self.floats else {
            let message = format!(
                "verify.tolerance needs `floats`: which of the outputs hold f32 numbers; {}",
                named(outputs)
            );
            return wrong(tolerance.span(), message);
        };
        Ok(Some(WithinOrder {
            relative,
            absolute,
            floats: names(document, floats, outputs)?,
        }))
    }
}

/// The outputs that hold floats, by their names.
fn names(
    document: &Document,
    floats: &Spanned<Vec<Spanned<String>>>,
    outputs: &[OutputFile],
) -> Result<Vec<String>, Mistake> {
    let wrong = |at: Range<usize>, message: String| Err(document.mistake(Some(at), message));
    let given = floats.get_ref();
    if given.is_empty() || given.len() > OUTPUTS_MAX {
        let message = format!(
            "verify.floats: 1 to {OUTPUTS_MAX} outputs are allowed; {}",
            named(outputs)
        );
        return wrong(floats.span(), message);
    }
    let mut names = Vec::with_capacity(given.len());
    for float in given {
        let name = float.get_ref();
        let known = outputs.iter().find(|output| output.name == *name);
        let message = match known {
            None => {
                let hint = allowed(name, outputs.iter().map(|output| output.name.as_str()));
                format!("verify.floats: no output `{}`; {hint}", name.escape_debug())
            }
            Some(output) if output.png.is_some() => {
                format!("verify.floats: output `{name}` is a picture of bytes; leave it out")
            }
            Some(_) if names.contains(name) => {
                format!("verify.floats: `{name}` is there twice; leave one out")
            }
            Some(_) => {
                names.push(name.clone());
                continue;
            }
        };
        return wrong(float.span(), message);
    }
    Ok(names)
}

fn named(outputs: &[OutputFile]) -> String {
    let names: Vec<String> = outputs
        .iter()
        .map(|output| format!("`{}`", output.name))
        .collect();
    format!("the job's outputs are {}", names.join(", "))
}
