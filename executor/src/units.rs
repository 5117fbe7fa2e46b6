//! How the units of an array differ.
//!
//! What travels as a job's spec is a [`Template`]: the program of the first unit,
//! and columns. A [`Column`] names one place in the program and what each unit has
//! there. A job that is no array has one unit and no columns.
//!
//! ```text
//!   program    args = ["scene", "0"]       constants = { SCALE = 1.0 }
//!   columns    argument 1: the unit        constant 0 of pass 0: [1.0, 0.5, 0.25]
//!                   │                                 │
//!   unit 2     args = ["scene", "2"]       constants = { SCALE = 0.25 }
//! ```
//!
//! Only values differ, never what a program needs: memory, fuel, inputs, outputs and
//! features of one unit are those of all. An executor puts a unit's values in before
//! a worker sees any of it.
//!
//! Absent: files that a unit has for itself. The program reads them as its last
//! inputs, and whoever orders an execution gives that unit's.

use std::borrow::Cow;

use bincode::{Decode, Encode};
use suanli_protocol::{
    registry::Runtime,
    wire::{self, List, Utf8, WireError},
};

use crate::{
    command::Command,
    limits::{ARGUMENT_BYTES_MAX, COLUMNS_MAX, TEMPLATE_BYTES_MAX, UNITS_MAX},
    program::Program,
    spec::{Content, Graph, SpecError, rule},
};

/// A program, and how the units of an array differ from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    program: Program,
    units: u32,
    columns: List<Column, COLUMNS_MAX>,
}

/// The same as it travels: the runtime says which program it is.
#[derive(Debug, Encode, Decode)]
struct Travelling<P> {
    program: P,
    units: u32,
    columns: List<Column, COLUMNS_MAX>,
}

/// What each unit has in one place.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Column {
    /// Where.
    pub place: Place,
    /// What.
    pub values: Values,
}

/// A place in a program at which units may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Place {
    /// The value of a constant of a pass.
    Constant {
        /// Which pass.
        pass: u16,
        /// Which of its constants.
        constant: u16,
    },
    /// Four bytes of a buffer's inline content.
    Word {
        /// Which buffer.
        buffer: u16,
        /// Which four, counted in words.
        word: u32,
    },
    /// An argument of a command.
    Argument(u16),
    /// The value of a variable of a command.
    Variable(u16),
}

/// What units have in a place, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Values {
    /// The unit's own number.
    Unit,
    /// [`f64::to_bits`] of constants.
    Constants(List<u64, UNITS_MAX>),
    /// Words, as numbers whose little-endian bytes they are.
    Words(List<u32, UNITS_MAX>),
    /// Arguments, or variables' values.
    Texts(List<Utf8<ARGUMENT_BYTES_MAX>, UNITS_MAX>),
}

impl Template {
    /// A program of so many units that differ so. The columns may come in any order.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn new(program: Program, units: u32, mut columns: Vec<Column>) -> Result<Self, SpecError> {
        columns.sort_by_key(|column| column.place);
        let template = Self {
            program,
            units,
            columns: columns.try_into()?,
        };
        template.validate()?;
        Ok(template)
    }

    /// Of a job that is no array.
    pub fn single(program: impl Into<Program>) -> Self {
        Self {
            program: program.into(),
            units: 1,
            columns: List::default(),
        }
    }

    /// Decodes and checks a spec.
    ///
    /// # Errors
    /// If the bytes are no valid spec of the runtime, or no runtime of ours.
    pub fn decode(runtime: Runtime, bytes: &[u8]) -> Result<Self, SpecError> {
        let template = match runtime {
            Runtime::WGSL => Self::of::<Graph>(wire::decode(bytes, TEMPLATE_BYTES_MAX)?),
            Runtime::WASM => Self::of::<Command>(wire::decode(bytes, TEMPLATE_BYTES_MAX)?),
            other => return Err(SpecError::Rule(format!("{other} is not run here"))),
        };
        template.validate()?;
        Ok(template)
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// If they would be too many.
    pub fn encode(&self) -> Result<Vec<u8>, SpecError> {
        let (units, columns) = (self.units, self.columns.clone());
        let bytes = match &self.program {
            Program::Wgsl(graph) => wire::encode(&Travelling {
                program: graph.clone(),
                units,
                columns,
            }),
            Program::Wasm(command) => wire::encode(&Travelling {
                program: command.clone(),
                units,
                columns,
            }),
        };
        if bytes.len() > TEMPLATE_BYTES_MAX {
            return Err(WireError::TooLong {
                bytes: bytes.len(),
                bytes_max: TEMPLATE_BYTES_MAX,
            }
            .into());
        }
        Ok(bytes)
    }

    /// The program of the first unit. What it needs, all need.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// How many units there are: 1 if it is no array.
    #[must_use]
    pub const fn units(&self) -> u32 {
        self.units
    }

    /// In what units differ, in the order of places.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The program that a unit runs.
    ///
    /// # Errors
    /// If there is no such unit.
    pub fn for_unit(&self, unit: u32) -> Result<Cow<'_, Program>, SpecError> {
        rule(unit < self.units, || {
            format!("unit {unit} of {}: they count from 0", self.units)
        })?;
        if self.columns.is_empty() {
            return Ok(Cow::Borrowed(&self.program));
        }
        let mut program = self.program.clone();
        for column in &self.columns {
            match &mut program {
                Program::Wgsl(graph) => column.put_in_graph(graph, unit),
                Program::Wasm(command) => column.put_in_command(command, unit),
            }
        }
        Ok(Cow::Owned(program))
    }

    /// Checks all that needs neither compiler nor adapter.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.program.validate()?;
        let units = usize::try_from(self.units).unwrap_or(usize::MAX);
        rule((1..=UNITS_MAX).contains(&units), || {
            format!("{units} units: 1 to {UNITS_MAX} are allowed")
        })?;
        let in_order = |a: &Column, b: &Column| a.place < b.place;
        rule(self.columns.is_sorted_by(in_order), || {
            "units differ twice in one place, or the places are not in order".to_owned()
        })?;
        self.columns
            .iter()
            .try_for_each(|column| column.validate(&self.program, units))
    }

    fn of<P: Into<Program>>(travelling: Travelling<P>) -> Self {
        Self {
            program: travelling.program.into(),
            units: travelling.units,
            columns: travelling.columns,
        }
    }
}

impl Column {
    fn validate(&self, program: &Program, units: usize) -> Result<(), SpecError> {
        let name = || self.place.name(program);
        rule(self.place.is_in(program), || {
            format!("units differ in {}, which the program has not", name())
        })?;
        let (count, fits) = match (&self.values, self.place) {
            (Values::Unit, _) => (units, true),
            (Values::Constants(list), place) => {
                (list.len(), matches!(place, Place::Constant { .. }))
            }
            (Values::Words(list), place) => (list.len(), matches!(place, Place::Word { .. })),
            (Values::Texts(list), place) => (
                list.len(),
                matches!(place, Place::Argument(_) | Place::Variable(_)),
            ),
        };
        rule(fits, || format!("{} has values of another type", name()))?;
        rule(count == units, || {
            format!("{} has {count} values for {units} units", name())
        })?;
        let (no_number, no_text) = match &self.values {
            Values::Unit | Values::Words(_) => (false, false),
            Values::Constants(list) => {
                let finite = |bits: &u64| f64::from_bits(*bits).is_finite();
                (!list.iter().all(finite), false)
            }
            Values::Texts(list) => (false, list.iter().any(|text| text.contains('\0'))),
        };
        rule(!no_number, || {
            format!("{} has a value that is not finite", name())
        })?;
        rule(!no_text, || format!("{} has a zero byte", name()))
    }

    fn put_in_graph(&self, graph: &mut Graph, unit: u32) {
        match self.place {
            Place::Constant { pass, constant } => change(&mut graph.passes, pass, |pass| {
                change(&mut pass.constants, constant, |constant| {
                    constant.bits = self.constant(unit);
                });
            }),
            Place::Word { buffer, word } => change(&mut graph.buffers, buffer, |buffer| {
                if let Content::Inline(bytes) = &mut buffer.content {
                    let mut content = std::mem::take(bytes).into_vec();
                    if let Some(old) = range_of(word).and_then(|range| content.get_mut(range)) {
                        old.copy_from_slice(&self.word(unit).to_le_bytes());
                    }
                    *bytes = List::truncated(content);
                }
            }),
            // No graph has such places.
            Place::Argument(_) | Place::Variable(_) => {}
        }
    }

    fn put_in_command(&self, command: &mut Command, unit: u32) {
        let text = || Utf8::cut(&self.text(unit));
        match self.place {
            Place::Argument(index) => change(&mut command.arguments, index, |old| *old = text()),
            Place::Variable(index) => {
                change(&mut command.variables, index, |old| old.value = text());
            }
            // No command has such places.
            Place::Constant { .. } | Place::Word { .. } => {}
        }
    }

    fn constant(&self, unit: u32) -> u64 {
        let listed = match &self.values {
            Values::Constants(list) => nth(list, unit).copied(),
            Values::Unit | Values::Words(_) | Values::Texts(_) => None,
        };
        listed.unwrap_or_else(|| f64::from(unit).to_bits())
    }

    fn word(&self, unit: u32) -> u32 {
        let listed = match &self.values {
            Values::Words(list) => nth(list, unit).copied(),
            Values::Unit | Values::Constants(_) | Values::Texts(_) => None,
        };
        listed.unwrap_or(unit)
    }

    fn text(&self, unit: u32) -> Cow<'_, str> {
        let listed = match &self.values {
            Values::Texts(list) => nth(list, unit).map(|text| &**text),
            Values::Unit | Values::Constants(_) | Values::Words(_) => None,
        };
        listed.map_or_else(|| Cow::Owned(unit.to_string()), Cow::Borrowed)
    }
}

impl Place {
    fn is_in(self, program: &Program) -> bool {
        match (self, program) {
            (Self::Constant { pass, constant }, Program::Wgsl(graph)) => {
                let pass = graph.passes.get(usize::from(pass));
                pass.is_some_and(|pass| usize::from(constant) < pass.constants.len())
            }
            (Self::Word { buffer, word }, Program::Wgsl(graph)) => {
                let buffer = graph.buffers.get(usize::from(buffer));
                buffer.is_some_and(|buffer| match &buffer.content {
                    Content::Inline(bytes) => {
                        range_of(word).is_some_and(|range| range.end <= bytes.len())
                    }
                    Content::Input { .. } | Content::Zeroed => false,
                })
            }
            (Self::Argument(index), Program::Wasm(command)) => {
                usize::from(index) < command.arguments.len()
            }
            (Self::Variable(index), Program::Wasm(command)) => {
                usize::from(index) < command.variables.len()
            }
            (Self::Constant { .. } | Self::Word { .. }, Program::Wasm(_))
            | (Self::Argument(_) | Self::Variable(_), Program::Wgsl(_)) => false,
        }
    }

    /// As a person knows it, with its own name where the program has that place.
    fn name(self, program: &Program) -> String {
        match (self, program) {
            (Self::Constant { pass, constant }, Program::Wgsl(graph)) => {
                let found = graph.passes.get(usize::from(pass));
                let found = found.and_then(|found| found.constants.get(usize::from(constant)));
                match found {
                    Some(found) => format!("constant {} of pass {pass}", &*found.name),
                    None => format!("constant {constant} of pass {pass}"),
                }
            }
            (Self::Word { buffer, word }, Program::Wgsl(graph)) => {
                match graph.buffers.get(usize::from(buffer)) {
                    Some(found) => format!("word {word} of buffer {}", &*found.name),
                    None => format!("word {word} of buffer {buffer}"),
                }
            }
            (Self::Variable(index), Program::Wasm(command)) => {
                match command.variables.get(usize::from(index)) {
                    Some(found) => format!("variable {}", &*found.name),
                    None => format!("variable {index}"),
                }
            }
            (Self::Argument(index), _) => format!("argument {index}"),
            (Self::Variable(index), _) => format!("variable {index}"),
            (Self::Constant { .. }, _) => "a constant".to_owned(),
            (Self::Word { .. }, _) => "a word of a buffer".to_owned(),
        }
    }
}

/// The bytes of a word.
fn range_of(word: u32) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(word).ok()?.checked_mul(4)?;
    Some(start..start.checked_add(4)?)
}

fn nth<T, const MAX: usize>(list: &List<T, MAX>, unit: u32) -> Option<&T> {
    list.get(usize::try_from(unit).ok()?)
}

/// Changes one element of a list, if it is there.
fn change<T, const MAX: usize>(list: &mut List<T, MAX>, index: u16, change: impl FnOnce(&mut T)) {
    let mut elements = std::mem::take(list).into_vec();
    if let Some(element) = elements.get_mut(usize::from(index)) {
        change(element);
    }
    *list = List::truncated(elements);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::Variable,
        spec::{Buffer, Constant, Name, Output, Pass},
    };

    fn list<T, const MAX: usize>(elements: Vec<T>) -> List<T, MAX> {
        List::new(elements).unwrap()
    }

    fn graph() -> Program {
        let name = |text: &str| Name::cut(text);
        let buffer = |text, content| Buffer {
            name: name(text),
            content,
            size: 8,
        };
        Program::Wgsl(Graph {
            source: Utf8::cut("@compute @workgroup_size(1) fn main() {}"),
            features: List::default(),
            buffers: list(vec![
                buffer("view", Content::Inline(list(vec![0; 8]))),
                buffer("out", Content::Zeroed),
            ]),
            passes: list(vec![Pass {
                entry: name("main"),
                bindings: list(vec![0, 1]),
                workgroups: [1, 1, 1],
                repeat: 1,
                constants: list(vec![Constant {
                    name: name("SCALE"),
                    bits: 1.0_f64.to_bits(),
                }]),
            }]),
            outputs: list(vec![Output {
                buffer: 1,
                name: name("out"),
            }]),
            checkpoint: None,
        })
    }

    fn command() -> Program {
        Program::Wasm(Command {
            module: 0,
            arguments: list(vec![Utf8::cut("program"), Utf8::cut("0")]),
            variables: list(vec![Variable {
                name: Name::cut("SEED"),
                value: Utf8::cut("a"),
            }]),
            stdin: None,
            files: List::default(),
            outputs: List::default(),
            stdout_max: 10,
            stderr_max: 10,
            memory_max: 1 << 20,
            fuel_max: 1,
            clock_ns: 0,
            seed: 0,
        })
    }

    const CONSTANT: Place = Place::Constant {
        pass: 0,
        constant: 0,
    };
    const WORD: Place = Place::Word { buffer: 0, word: 1 };

    fn constants(values: &[f64]) -> Values {
        Values::Constants(list(values.iter().map(|value| value.to_bits()).collect()))
    }

    fn texts(values: &[&str]) -> Values {
        Values::Texts(list(values.iter().map(|text| Utf8::cut(text)).collect()))
    }

    fn column(place: Place, values: Values) -> Column {
        Column { place, values }
    }

    fn refused(program: Program, units: u32, columns: Vec<Column>) -> String {
        let bytes = {
            let columns = list(columns);
            match &program {
                Program::Wgsl(graph) => wire::encode(&Travelling {
                    program: graph.clone(),
                    units,
                    columns,
                }),
                Program::Wasm(command) => wire::encode(&Travelling {
                    program: command.clone(),
                    units,
                    columns,
                }),
            }
        };
        let refused = Template::decode(program.runtime(), &bytes);
        refused.unwrap_err().to_string()
    }

    #[test]
    fn a_unit_gets_its_values_in_every_place_of_a_graph() {
        let columns = vec![
            column(WORD, Values::Words(list(vec![7, 8, 9]))),
            column(CONSTANT, constants(&[1.0, 0.5, 0.25])),
            column(Place::Word { buffer: 0, word: 0 }, Values::Unit),
        ];
        let template = Template::new(graph(), 3, columns).unwrap();
        let bytes = template.encode().unwrap();
        assert_eq!(
            Template::decode(Runtime::WGSL, &bytes).as_ref(),
            Ok(&template)
        );
        let program = template.for_unit(2).unwrap();
        let Program::Wgsl(of_unit) = &*program else {
            panic!("it is of another runtime")
        };
        let words = [2_u32.to_le_bytes(), 9_u32.to_le_bytes()].concat();
        assert_eq!(of_unit.buffers[0].content, Content::Inline(list(words)));
        assert_eq!(of_unit.passes[0].constants[0].bits, 0.25_f64.to_bits());
        assert_eq!(program.validate(), Ok(()));
    }

    #[test]
    fn a_unit_gets_its_values_in_every_place_of_a_command() {
        let columns = vec![
            column(Place::Argument(1), Values::Unit),
            column(Place::Variable(0), texts(&["a", "b"])),
        ];
        let template = Template::new(command(), 2, columns).unwrap();
        let bytes = template.encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Template::decode(Runtime::WASM, &bytes[..end]).is_err());
        }
        let program = Template::decode(Runtime::WASM, &bytes).unwrap();
        let program = program.for_unit(1).unwrap().into_owned();
        let Program::Wasm(of_unit) = program else {
            panic!("it is of another runtime")
        };
        assert_eq!(&*of_unit.arguments[1], "1");
        assert_eq!(&*of_unit.variables[0].value, "b");
        assert_eq!(&*of_unit.arguments[0], "program");
    }

    #[test]
    fn a_unit_that_is_not_there_is_refused() {
        let single = Template::single(command());
        assert_eq!(single.for_unit(0).unwrap().into_owned(), command());
        let none = single.for_unit(1).unwrap_err().to_string();
        assert_eq!(none, "unit 1 of 1: they count from 0");
        let array = Template::new(graph(), 2, vec![column(CONSTANT, Values::Unit)]).unwrap();
        assert!(array.for_unit(1).is_ok());
        assert!(array.for_unit(u32::MAX).is_err());
        assert!(refused(command(), 0, vec![]).contains("0 units: 1 to 65536"));
        assert!(refused(command(), 65_537, vec![]).contains("65537 units"));
    }

    #[test]
    fn places_that_are_not_there_are_refused() {
        let no_pass = Place::Constant {
            pass: 1,
            constant: 0,
        };
        let no_constant = Place::Constant {
            pass: 0,
            constant: 1,
        };
        let word = |buffer, word| Place::Word { buffer, word };
        for place in [
            no_pass,
            no_constant,
            word(0, 2),
            word(0, u32::MAX),
            word(1, 0),
            word(2, 0),
            Place::Argument(0),
            Place::Variable(0),
        ] {
            let said = refused(graph(), 2, vec![column(place, Values::Unit)]);
            assert!(said.contains("which the program has not"), "{said}");
        }
        for place in [
            CONSTANT,
            WORD,
            Place::Argument(2),
            Place::Variable(1),
            Place::Argument(u16::MAX),
        ] {
            let said = refused(command(), 2, vec![column(place, Values::Unit)]);
            assert!(said.contains("which the program has not"), "{said}");
        }
    }

    #[test]
    fn values_are_of_the_places_type_and_as_many_as_units() {
        let words = || Values::Words(list(vec![1, 2]));
        for (program, place, values) in [
            (graph(), CONSTANT, words()),
            (graph(), CONSTANT, texts(&["1", "2"])),
            (graph(), WORD, constants(&[1.0, 2.0])),
            (graph(), WORD, texts(&["1", "2"])),
            (command(), Place::Argument(0), words()),
            (command(), Place::Variable(0), constants(&[1.0, 2.0])),
        ] {
            let said = refused(program, 2, vec![column(place, values)]);
            assert!(said.contains("of another type"), "{said}");
        }
        let few = refused(graph(), 3, vec![column(WORD, words())]);
        assert_eq!(few, "word 1 of buffer view has 2 values for 3 units");
        let infinite = constants(&[1.0, f64::INFINITY]);
        assert!(refused(graph(), 2, vec![column(CONSTANT, infinite)]).contains("not finite"));
        let zero = vec![column(Place::Argument(1), texts(&["a\0"]))];
        assert!(refused(command(), 1, zero).contains("zero byte"));
    }

    #[test]
    fn a_place_is_named_once_and_in_order() {
        let unit = |place| column(place, Values::Unit);
        for columns in [
            vec![unit(WORD), unit(WORD)],
            vec![unit(WORD), unit(CONSTANT)],
        ] {
            assert!(refused(graph(), 2, columns).contains("twice in one place"));
        }
        let broken = Template::new(graph(), 2, vec![unit(WORD), unit(WORD)]);
        assert!(broken.is_err());
    }

    #[test]
    fn a_list_longer_than_any_array_is_refused_before_it_is_read() {
        let column = column(WORD, Values::Words(list(vec![0; UNITS_MAX])));
        let most = u32::try_from(UNITS_MAX).unwrap();
        let template = Template::new(graph(), most, vec![column]).unwrap();
        let mut bytes = template.encode().unwrap();
        // The list's length stands before its words.
        let at = bytes.len() - 4 * UNITS_MAX - 4;
        bytes[at..at + 4].copy_from_slice(&(most + 1).to_le_bytes());
        bytes.extend([0; 4]);
        let refused = Template::decode(Runtime::WGSL, &bytes).unwrap_err();
        assert!(matches!(refused, SpecError::Codec(_)), "{refused}");
    }
}
