/**
 * A window on a timeline of any length: neighbouring entries, bounded in number and size.
 */

export const MOST_ENTRIES = 200;
export const MOST_BYTES = 4 * 1024 * 1024;

export class EntryWindow {
  entries = [];
  #sizes = new Map();
  #bytes = 0;

  get first() {
    return this.entries[0]?.seq ?? 0;
  }

  get last() {
    return this.entries.at(-1)?.seq ?? 0;
  }

  get full() {
    return this.entries.length >= MOST_ENTRIES || this.#bytes >= MOST_BYTES;
  }

  clear() {
    this.entries = [];
    this.#sizes.clear();
    this.#bytes = 0;
  }

  /** Add *newer* behind the last; return the seqs that leave at the other end. */
  append(newer) {
    this.entries.push(...newer.filter((one) => this.#count(one)));
    return this.#shrink(() => this.entries.shift());
  }

  /** Add *older* before the first; return the seqs that leave at the other end. */
  prepend(older) {
    this.entries.unshift(...older.filter((one) => this.#count(one)));
    return this.#shrink(() => this.entries.pop());
  }

  #count(one) {
    if (this.#sizes.has(one.seq)) return false;
    // Two bytes a character, as strings are held.
    const size = 2 * (JSON.stringify(one.entry)?.length ?? 0) + 200;
    this.#sizes.set(one.seq, size);
    this.#bytes += size;
    return true;
  }

  #shrink(drop) {
    const left = [];
    // One entry always stays, however large.
    while (this.entries.length > 1 && (this.entries.length > MOST_ENTRIES || this.#bytes > MOST_BYTES)) {
      const { seq } = drop();
      this.#bytes -= this.#sizes.get(seq);
      this.#sizes.delete(seq);
      left.push(seq);
    }
    return left;
  }
}
