//! The least that a ublk server can do, by libublk alone.

use crate::Shape;
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::{BufDescList, UblkDev, UblkQueue};
use libublk::{BufDesc, UblkFlags, UblkIORes};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::error::Error;
use ukai_proto::limits::SECTOR_BYTES;

/// As the front's devices have it.
const IO_BYTES_MAX: u32 = 512 << 10;

fn serve(queue: u16, device: &UblkDev) {
    let buffers = device.alloc_queue_io_bufs();
    let commands = UblkQueue::new(queue, device)
        .and_then(|queue| queue.submit_fetch_commands_unified(BufDescList::Slices(Some(&buffers))))
        .unwrap_or_else(|error| panic!("queue {queue} cannot be served: {error}"));
    commands.wait_and_handle_io(|queue, tag, _context| {
        let bytes = queue.get_iod(tag).nr_sectors << 9;
        #[allow(clippy::cast_possible_wrap)] // at most IO_BYTES_MAX
        let result = Ok(UblkIORes::Result(bytes as i32));
        let buffer = BufDesc::Slice(buffers[usize::from(tag)].as_slice());
        if let Err(error) = queue.complete_io_cmd_unified(tag, buffer, result) {
            panic!("tag {tag} cannot be answered: {error}");
        }
    });
}

/// Until a signal.
pub(crate) fn present(shape: Shape) -> Result<(), Box<dyn Error>> {
    let control = UblkCtrlBuilder::default()
        .name("null")
        .nr_queues(shape.queues)
        .depth(shape.depth)
        .io_buf_bytes(IO_BYTES_MAX)
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
        .build()?;
    let number = i32::try_from(control.dev_info().dev_id)?;
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    std::thread::spawn(move || {
        signals.forever().next();
        if let Ok(control) = UblkCtrl::new_simple(number) {
            let _ = control.kill_dev();
        }
    });
    control.run_target(
        move |device: &mut UblkDev| {
            device.set_default_params(shape.size_bytes);
            #[allow(clippy::cast_possible_truncation)] // 12
            let shift = SECTOR_BYTES.trailing_zeros() as u8;
            let basic = &mut device.tgt.params.basic;
            (basic.logical_bs_shift, basic.physical_bs_shift) = (shift, shift);
            (basic.io_min_shift, basic.io_opt_shift) = (shift, shift);
            Ok(())
        },
        serve,
        |control: &UblkCtrl| println!("attached {}", control.get_bdev_path()),
    )?;
    Ok(())
}
