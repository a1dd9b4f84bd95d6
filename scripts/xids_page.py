"""The page of docs/ about XIDs, made from the catalogue and from what the kernel's lines are looked at for."""

from __future__ import annotations

from collectors.kernel_lines import CONDITIONS
from collectors.kernel_log import FIRST_SECONDS, LATE_SECONDS
from collectors.xids.catalogue import CATALOGUE, FOLLOW_ONS
from collectors.xids.flood import ROWS_MAX, WINDOW_SECONDS
from collectors.xids.ledger import HOLD_SECONDS, PARENT_SECONDS, SAME_SECONDS
from scripts.configuration_page import NOTE

INTRODUCTION = f"""# XIDs and the kernel's log

An XID is the NVIDIA driver's code for something that went wrong on a GPU. It is written into the kernel's log and told by
NVML; Nantucket reads both and sends each occurrence once, as an `event/1` row of kind `xid`: the GPU (`gpu`, `uuid`), the
code, and in `detail`

| key | is |
|---|---|
| `count` | how often this code was seen on this GPU since the collector started |
| `mnemonic`, `action`, `investigate` | NVIDIA's, as in the table below; `null` where the catalogue says nothing |
| `origin` | `kernel_log` or `nvml`: whose words these are |
| `text`, `pid`, `process` | what the kernel's line says |
| `parent` | of a follow-on ({", ".join(map(str, sorted(FOLLOW_ONS)))}): `code` of the XID before it on the same GPU and `seconds_before`, up to {PARENT_SECONDS:g} s |
| `nvlink_unit`, `nvlink_part`, `fatal`, `link`, `crossbar`, `instance`, `interrupt_info`, `error_status`, `registers` | of the NVLink 5 codes 144 to 150, as the line gives them |
| `recovery_before`, `recovery_after` | of 154: `action` as in the metric `recovery_action`, and the driver's words |
| `suppressed` | how many more there were: of one code on one GPU at most {ROWS_MAX} rows are sent in {WINDOW_SECONDS:g} s |
| `happened` | when it happened (UTC seconds), where that is over {LATE_SECONDS / 60:g} minutes ago |

**Once.** The n-th report of a code on a GPU by the one is the n-th by the other, where they are no more than {SAME_SECONDS:g} s
apart; twice the same XID is two events. Where the kernel's log is read, a report of NVML waits {HOLD_SECONDS:g} s for its words.

**SXIDs**, the codes of NVSwitches, are rows of kind `sxid`: `code`, and in `detail` `switch`, `pci`, `fatal` (`null` where the
line does not say), `link`, `text`, `count`.

## Reading the kernel's log

The source `kernel_log` reads `/dev/kmsg`, or the file that `collect.kernel_log` names (a syslog file, or what `dmesg` writes; it
may be rotated). A line is on its way within milliseconds. `/dev/kmsg` takes root or `CAP_SYSLOG` where `kernel.dmesg_restrict`
is 1; a container needs the device mounted. How far it was read stands in `kernel-log.json` in the state: a collector that is
started again goes on there. On its first start it tells the last {FIRST_SECONDS / 60:g} minutes. Records that were overwritten before
they were read are counted (`nantucket_collector_field_failures_total{{metric="kernel_log",reason="lost"}}`); records that a process
has written there are not believed.

Besides XIDs and SXIDs these lines become rows of kind `kernel` with `detail.condition`:

| condition | means |
|---|---|
"""


def xids_page() -> str:
    """Return the page."""
    conditions = [f"| `{name}` | {meaning} |" for name, (meaning, _) in CONDITIONS.items()]
    codes = [
        f"| {xid.code} | {xid.mnemonic or ''} | {xid.action or ''} | {xid.investigate or ''} | {xid.meaning or ''} |"
        for xid in CATALOGUE.values()
    ]
    head = "\n\n## Codes\n\nNVIDIA's catalogue as of October 2025. A code that is not in it is passed on by its number.\n\n"
    table = "| code | NVIDIA's name | at once | later | in words |\n|---|---|---|---|---|\n"
    return NOTE + INTRODUCTION + "\n".join(conditions) + head + table + "\n".join(codes) + "\n"
