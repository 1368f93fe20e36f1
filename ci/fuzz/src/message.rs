//! `message`: the auxiliary section of each message. What is read is written again and must be the same
//! bytes; no reader takes more memory than its section explains.

use crate::alloc::measured;
use crate::input::Input;
use std::fmt::Debug;
use ukai_proto::heat::{ChunkHeat, HEAT_PAGE_CHUNKS, HeatPage};
use ukai_proto::limits::AUX_BYTES_MAX;
use ukai_proto::message::{
    Hello, MessageError, Pull, Pulled, Report, ShardStats, chunk_list, chunk_ranges, crc_table,
    inventory, read_chunk_list, read_chunk_ranges, read_crc_table, read_inventory,
    read_sector_states, sector_states,
};

/// Does the encoder leave no byte of the message undecided?
#[derive(PartialEq)]
enum Form {
    /// The same bytes come out.
    Same,
    /// There is padding: the same values come out.
    Padded,
}

fn check<T: PartialEq + Debug>(
    aux: &[u8],
    form: Form,
    read: impl Fn(&[u8]) -> Result<T, MessageError>,
    write: impl Fn(&T) -> Vec<u8>,
) {
    check_sized(aux, form, 512, read, write);
}

/// `spare`: what the reader may take beyond four times the section.
fn check_sized<T: PartialEq + Debug>(
    aux: &[u8],
    form: Form,
    spare: usize,
    read: impl Fn(&[u8]) -> Result<T, MessageError>,
    write: impl Fn(&T) -> Vec<u8>,
) {
    let (result, used) = measured(|| read(aux));
    assert!(
        used.total <= 4 * aux.len() + spare,
        "{used:?} for a section of {} bytes",
        aux.len()
    );
    match result {
        Ok(value) => {
            let bytes = write(&value);
            assert!(bytes.len() <= AUX_BYTES_MAX, "{value:?}");
            if form == Form::Same {
                assert!(aux.starts_with(&bytes), "{value:?}: {bytes:?} of {aux:?}");
            }
            assert_eq!(read(&bytes).as_ref(), Ok(&value));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, count) = (input.below(11), input.u16());
    let rest = input.rest();
    let aux = &rest[..rest.len().min(AUX_BYTES_MAX)];
    match kind {
        0 => check(aux, Form::Padded, Hello::decode, Hello::encode),
        1 => check(aux, Form::Same, Pull::decode, Pull::encode),
        2 => check(aux, Form::Same, Pulled::decode, Pulled::encode),
        3 if !aux.is_empty() => check(aux, Form::Same, read_chunk_list, |list| chunk_list(list)),
        3 => assert_eq!(read_chunk_list(aux), Ok(Vec::new())),
        4 => check(aux, Form::Same, read_chunk_ranges, |list| {
            chunk_ranges(list)
        }),
        5 => check(aux, Form::Padded, read_inventory, |list| inventory(list)),
        6 => check(
            aux,
            Form::Same,
            |aux| read_crc_table(aux, count).map(|(prefix, crcs)| (prefix, crcs.collect())),
            |(prefix, crcs): &(u64, Vec<u32>)| crc_table(*prefix, crcs.iter().copied()),
        ),
        7 => check(
            aux,
            Form::Same,
            |aux| read_sector_states(aux, count).map(|(prefix, all)| (prefix, all.collect())),
            |(prefix, states): &(u64, Vec<_>)| sector_states(*prefix, states.iter().copied()),
        ),
        8 => check(aux, Form::Padded, Report::decode, Report::encode),
        // Chunks that are not used are not in the section; their number is bounded.
        9 => {
            let spare = 512 + HEAT_PAGE_CHUNKS as usize * size_of::<ChunkHeat>();
            check_sized(aux, Form::Padded, spare, HeatPage::decode, HeatPage::encode);
        }
        _ => {
            let (stats, used) = measured(|| ShardStats::decode(aux));
            assert_eq!(used.total, 0);
            let bytes = stats.encode();
            let both = aux.len().min(bytes.len()) / 8 * 8;
            assert_eq!(bytes[..both], aux[..both]);
            assert!(bytes[both..].iter().all(|byte| *byte == 0));
            let mut sum = stats;
            sum.add(&stats);
            assert!(sum.reads >= stats.reads);
        }
    }
}
