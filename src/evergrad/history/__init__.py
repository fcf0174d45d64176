"""All examples seen so far, on disk: append-only columns in segments, mapped into memory.

    history.json                          the columns: name, kind, dtype, shape of a row; rows and bytes a segment
    00000007-0000000000130000/            segment 7, whose first example has the id 130000
        arrived.bin                       when each row arrived: int64, microseconds since 1970
        0.bin                             column 0, of a fixed shape, as it lies in memory
        1.offsets  1.data                 column 1, ragged: where each row begins and ends in the data, in bytes
    commits                               32 bytes a batch: examples and segments so far, checksums
    excluded                              24 bytes a range of examples never to be sampled again
    synced                                how many batches are surely on the disk, since which start of the machine
    lock                                  locked by the writer; the number of its process

A batch is in when its commit record is whole, and then all of it is. What the death of the process leaves:

1. before the first batch: a folder without history.json, which is no history; or with it, and no batch.
2. while a batch begins a segment, or writes its rows: files and bytes beyond the last commit record, which nobody
   reads, and the next batch overwrites or removes.
3. in the midst of its commit record: a record whose checksum is wrong, which does not count and is cut off.
4. after it, before retention: the batch is in; retention follows with the next one.
5. while retention takes segments out, each by one renaming to `.removed-...`: those that were, are; the files are
   removed when the history is opened to write, or by the next retention.
6. while a range is excluded: it is in if its record is whole; a torn one is overwritten.

A failed write (a full disk) leaves the same as 2 or 3, and the history goes on where it was. Appending does not wait
for the disk; `sync` does. After a loss of power the writer compares the batches after the last `sync` with their
checksums and drops those from the first damaged one on: ids that they had may be given anew. Readers that open such a
history before its writer may see them, until they open it anew.

A reader that has mapped a segment keeps it when retention removes that; one that has not gets `NotInHistory`. Files cut
short by somebody else under a reader or writer end its process (SIGBUS), as with any memory map.
"""

from __future__ import annotations

from evergrad.history.history import History
from evergrad.history.ragged import Ragged

__all__ = ["History", "Ragged"]
