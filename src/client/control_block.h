/* What an exporter and the job step both see of an exporter's state: one page of shared memory, in a file of
   its own. C and C++ read it; its layout is part of the contract between a client library and a job step of
   different versions. */
#ifndef WEIGHTCAST_CLIENT_CONTROL_BLOCK_H
#define WEIGHTCAST_CLIENT_CONTROL_BLOCK_H

#include <stdint.h>

#define WEIGHTCAST_BLOCK_BYTES 4096
/* "WCLIVE", a version of the layout, a zero. */
#define WEIGHTCAST_BLOCK_MAGIC UINT64_C(0x00024556494c4357)

/* Bytes of the block's file on which record locks say who is there. A lock goes with its process, and a child
 * has none. */
enum weightcast_lock {
  WEIGHTCAST_LOCK_EXPORTER = 0, /* by the exporter, for life */
  WEIGHTCAST_LOCK_UPDATE = 1,   /* by a rank of the job step, for an update */
  WEIGHTCAST_LOCK_MAPPED = 2    /* shared, by every rank that has the segments mapped */
};

/* Any process of the user writes here, and a later version may know more states: every value is one of the type, as
   it is in C. */
#ifdef __cplusplus
#define WEIGHTCAST_ANY_NUMBER : uint32_t
#else
#define WEIGHTCAST_ANY_NUMBER
#endif

enum weightcast_state WEIGHTCAST_ANY_NUMBER {
  WEIGHTCAST_NONE = 0, /* nothing was ever there */
  WEIGHTCAST_INVALID,  /* neither the old version nor a new one, until an update has been committed */
  WEIGHTCAST_SERVING,  /* an engine uses `version` */
  WEIGHTCAST_ASKED,    /* the job step wants to write `asked` */
  WEIGHTCAST_PAUSED,   /* the engine uses nothing */
  WEIGHTCAST_WRITING,
  WEIGHTCAST_WRITTEN,    /* this rank's memory holds all of `asked`, verified */
  WEIGHTCAST_COMMITTED,  /* and so do all others: the record is written */
  WEIGHTCAST_TRAINING,   /* a trainer changes its parameters */
  WEIGHTCAST_OFFERS,     /* they are `version`, and stay so */
  WEIGHTCAST_BEING_READ, /* the job step reads them */
  WEIGHTCAST_READ
};

/* How much of `lost` is in an invalid engine's memory. */
enum weightcast_written { WEIGHTCAST_WRITTEN_NONE = 0, WEIGHTCAST_WRITTEN_SOME, WEIGHTCAST_WRITTEN_ALL };

struct weightcast_block {
  uint64_t magic;
  uint64_t generation; /* of the manifest that names this block */
  /* The state in the low 8 bits, the update's number above. It changes by compare-and-swap alone; what else
     is here is stored before it (release) and read after it (acquire). Waiters sleep on its low half (a
     futex). */
  uint64_t word;
  int64_t version; /* in memory: what an engine serves, what a trainer offers */
  int64_t asked;   /* what the update that is under way brings */
  uint32_t written;
  uint32_t
      rest; /* of an engine that is asked: its state before, to which it goes back where nothing is written */
  char owner[256];  /* the rank of the job step that holds the update's lock, for messages */
  char reason[512]; /* why the last update was declined or failed; empty while one is under way */
  /* Of an invalid engine, whatever it has been asked since: the version that was to come, and why it did not. */
  int64_t lost;
  char cause[512];
};

#define WEIGHTCAST_STATE_OF(word) ((enum weightcast_state)((word)&0xff))
#define WEIGHTCAST_UPDATE_OF(word) ((word) >> 8)
#define WEIGHTCAST_WORD(state, update) ((uint64_t)(update) << 8 | (uint64_t)(state))

#endif
