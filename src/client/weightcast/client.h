/* Weightcast's client: a trainer or an inference engine publishes its parameters, and a job step of
   weightcast moves new weights from the one's memory into the other's.

   An engine:                                          A trainer:
     weightcast_open(dir, "engine", 0, 4, …, &e);        weightcast_open(dir, "trainer", 0, 2, …, &t);
     weightcast_add_segment(e, bytes, &memory, &s);      … the same, then after each training step:
     weightcast_add_entry(e, "norm", "BF16", …, s, 0);   weightcast_offer(t, version, seconds);
     weightcast_publish(e);
     … now and then:
     if (weightcast_wanted(e, &version) == 1) {
       weightcast_pause(e, seconds, &version);           returns when `version` is in the memory of every rank
       weightcast_resume(e);
     }
   or, where the engine has several ranks, one of which polls and tells the others:
     if ((question = broadcast(weightcast_question(e))) != 0) {
       weightcast_pause_for(e, question, seconds, &version);
       weightcast_resume(e);
     }

   Functions return 0, or a code below; weightcast_last_error() then says in a line what was wrong and what to
   do. What a job step would refuse to read is refused here. Texts are UTF-8, versions count from 0, and no
   wait is negative, endless or longer than 1e9 seconds. One thread at a time may use an export, and one of a
   process may open, publish or close any; a forked child may not use its parent's. Nothing here starts a
   thread. */
#ifndef WEIGHTCAST_CLIENT_H
#define WEIGHTCAST_CLIENT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEIGHTCAST_API __attribute__((visibility("default")))

enum weightcast_code {
  WEIGHTCAST_OK = 0,
  WEIGHTCAST_PENDING = 1, /* not yet: see weightcast_wait_in_pieces() */
  WEIGHTCAST_BAD_ARGUMENT =
      64,                     /* a call that makes no sense: an unknown dtype, an entry outside its segment */
  WEIGHTCAST_IS_INVALID = 65, /* the memory holds no whole version */
  WEIGHTCAST_STALE = 66,      /* a reference to weights that have another form or place by now */
  WEIGHTCAST_REFUSED = 74,    /* the system refused, or the other side is gone or has declined */
  WEIGHTCAST_NO_ANSWER = 76   /* nothing came in time */
};

typedef struct weightcast_export weightcast_export;

/* The library's version, such as "0.1.0": that of the programs that were built with it. Static. */
WEIGHTCAST_API const char* weightcast_version(void);

/* The last failure of this thread; empty when there was none. Valid until the thread's next call. */
WEIGHTCAST_API const char* weightcast_last_error(void);

/* Begins the publication of rank `rank` of `ranks` exporters of that role ("trainer" or "engine") in
   `folder`, which all hosts see and which is made when it is not there (`live:` in front is no part of its
   name). `layout` says how the parameters are cut: an engine's "sglang:t2e2", "vllm:(attn:d8|ffn:e8)" or "hf", a trainer's
   "megatron:(attn:t2|ffn:e2)", behind it options of the job step such as " --stage-layers 2,1", "hf", or "map:"
   and the key of an export map, which is in the folder as export-map-KEY.json; NULL: as the job step's options say. Fails when a living exporter has published that rank. */
WEIGHTCAST_API int weightcast_open(const char* folder, const char* role, int rank, int ranks,
                                   const char* layout, weightcast_export** out);

/* Shared memory of `bytes`, all of it reserved, zeroed, readable and writable; it stays where it is until the
   export is closed. `segment` is its number. */
WEIGHTCAST_API int weightcast_add_segment(weightcast_export* e, int64_t bytes, void** memory, int* segment);

/* Of an engine whose own loader takes the weights of some or all tensors, because it lays them out in a way
   of its own: shared memory of `bytes` through which these tensors come, which takes up memory only where
   something is. The job step lets up to `limit` bytes be in it at once, and more only where one tensor, or
   what arrives of several at the same time, is larger. An export has one at most. Its entries are the model's
   own tensors, whole and by Hugging Face's names; each begins with a page of memory and lies without gaps.
   They come between weightcast_pause() and weightcast_resume(), by weightcast_landed(). A window is in the
   host's memory: what goes through it does not come from a GPU. */
WEIGHTCAST_API int weightcast_add_window(weightcast_export* e, int64_t bytes, int64_t limit, void** memory,
                                         int* segment);

/* Memory that the caller has on a GPU: `bytes` from `address` on, which CUDA's driver in this process knows.
   The allocation that they lie in becomes a segment, the same for all that lies in it, and `offset` is where
   they begin in it. Where an allocator has mapped pieces of physical memory one behind the other (PyTorch's
   expandable segments), a segment is the pieces that are needed, each with a file descriptor of this process.
   The memory must stay until the export is closed. What an allocator has made so that no other process can
   open it is refused, with what to switch off. All GPU memory of an export is one GPU's. */
WEIGHTCAST_API int weightcast_add_gpu_memory(weightcast_export* e, const void* address, int64_t bytes,
                                             int* segment, int64_t* offset);

/* A tensor in a segment: `dtype` as safetensors names it (BF16, F32, F8_E4M3, …), `shape` and `strides` (in
   elements; NULL: without gaps) of `dims` numbers, four at most, `offset` in bytes. No two have one name, or
   lie in one another. */
WEIGHTCAST_API int weightcast_add_entry(weightcast_export* e, const char* name, const char* dtype, int dims,
                                        const int64_t* shape, const int64_t* strides, int segment,
                                        int64_t offset);

/* Another name of an entry, of a tied weight for example: the same memory, which is written once. */
WEIGHTCAST_API int weightcast_add_alias(weightcast_export* e, const char* name, const char* alias);

/* Of a trainer: an entry is not the whole tensor of that name but a box of it, as fully sharded trainers have
   it: from element `start` on of a tensor of shape `whole`, both of as many numbers as the entry has
   dimensions. The box may be empty. */
WEIGHTCAST_API int weightcast_set_box(weightcast_export* e, const char* name, const int64_t* whole,
                                      const int64_t* start);

/* Of an engine with expert parallelism that has moved experts between its slots, or may: in each of `layers`
   layers, those of the model or those with experts, it has `slots` slots on all ranks together for `experts`
   experts. All ranks of an engine say the same. A job step then places experts as the engine says, in place
   of its own options. */
WEIGHTCAST_API int weightcast_add_experts(weightcast_export* e, int64_t layers, int64_t slots,
                                          int64_t experts);

/* Which expert is in which slot, of each layer and slot in turn (vLLM's and SGLang's
   physical_to_logical_map), from now on: before weightcast_publish(), and whenever the engine has moved
   experts, on all its ranks. It need not publish anew. `epoch` is the engine's own count of its maps, greater
   each time, the same on all ranks. Refused while a job step has the parameters (WEIGHTCAST_REFUSED); one
   that has asked, and has not been answered by weightcast_pause(), starts again. An engine moves no experts
   from weightcast_pause() to weightcast_resume(), and does not pause while it moves any. */
WEIGHTCAST_API int weightcast_place_experts(weightcast_export* e, int64_t epoch,
                                            const int64_t* experts_of_slots);

/* Which expert is in which slot, into room for layers * slots numbers, and of which epoch (NULL: not asked): as
   the engine has said, or a job step that has moved experts for it (weightcast rebalance), under whose commit
   weights and map have changed together: to be asked when weightcast_pause() has returned, before the weights
   are used. WEIGHTCAST_IS_INVALID where a job step has died while it wrote them: place experts anew. */
WEIGHTCAST_API int weightcast_placed_experts(const weightcast_export* e, int64_t* epoch,
                                             int64_t* experts_of_slots);

/* Puts the manifest into the folder: from here on a job step may ask. An engine that has weights already says
   so with weightcast_serve() first. */
WEIGHTCAST_API int weightcast_publish(weightcast_export* e);

/* From here on a call on this export that waits comes back after `seconds` with WEIGHTCAST_PENDING, so that
   an interpreter can look at its signals, and goes on with its wait when it is called again with the same
   arguments. A wait that is not gone on with ends with weightcast_abandon(). 0, as at first: it waits to its
   end. */
WEIGHTCAST_API int weightcast_wait_in_pieces(weightcast_export* e, double seconds);

/* Ends what a wait has begun, wherever that is: for a caller that was interrupted. An engine that has paused
   goes on with what it had where nothing has been written, else it is invalid, for that reason; so is one
   that has not said what it makes of a version that was committed. A trainer's offer is withdrawn; one that
   is being read stays, which is WEIGHTCAST_NO_ANSWER, until weightcast_settle() says that it has ended. Where
   nothing has begun nothing changes. */
WEIGHTCAST_API int weightcast_abandon(weightcast_export* e, const char* reason);

/* Takes the manifest away and frees everything. Waits up to `seconds` for a job step that has the memory
   mapped; memory that is still mapped then is left to it, which is reported as WEIGHTCAST_NO_ANSWER, a
   manifest that cannot be removed as WEIGHTCAST_REFUSED; the export is gone all the same. */
WEIGHTCAST_API int weightcast_close(weightcast_export* e, double seconds);

/* Lets a segment's or window's memory stay mapped when the export is closed, with what is in it: for callers
   who have pointers into it still. Nobody else sees the memory then, and it is theirs to unmap (munmap). */
WEIGHTCAST_API int weightcast_keep_memory(weightcast_export* e, int segment);

/* Of an engine that is in no update: its memory holds version `version` whole, and it uses it. An invalid
   one, too, may say so, when it has loaded itself anew, from a file for example; on all its ranks.
   WEIGHTCAST_REFUSED while a job step that wrote when the engine was interrupted has not ended. */
WEIGHTCAST_API int weightcast_serve(weightcast_export* e, int64_t version);

/* Of an engine: 1 and the version when a job step asks to write a new one, else 0. Never waits. A call that
   makes no sense gives its code as a negative number. */
WEIGHTCAST_API int weightcast_wanted(const weightcast_export* e, int64_t* version);

/* Of an engine, which from here on neither reads nor writes its parameters: tells the job step, and waits up
   to `seconds` until a version is in the memory of every rank; once a job step writes, until that ends. Where
   nobody has asked yet it waits for that, too. On failure the memory holds the version that it held before,
   or the export is invalid (WEIGHTCAST_IS_INVALID). An engine with a window comes back as soon as the job step
   writes, and calls weightcast_landed() then. */
WEIGHTCAST_API int weightcast_pause(weightcast_export* e, double seconds, int64_t* version);

/* Of an engine that has several ranks, and on which one of them polls: the number of what wanted() tells of,
   the same on all ranks; 0 when nobody asks, or when the call makes no sense. */
WEIGHTCAST_API uint64_t weightcast_question(const weightcast_export* e);

/* weightcast_pause() for that question alone, which this rank may be asked later than the one that polled, or
   never: comes back with WEIGHTCAST_REFUSED as soon as it has been taken back, on all ranks alike. */
WEIGHTCAST_API int weightcast_pause_for(weightcast_export* e, uint64_t question, double seconds,
                                        int64_t* version);

/* Of an engine with a window that weightcast_pause() has come back to: gives back the tensors that the call
   before gave, whose memory holds zeros from then on, and waits until others are whole and verified. Their
   numbers, in the order in which entries were added, go to `numbers`, `most` of them at most, and how many
   there are to `count`. 0: there are no more, and the version is in the memory of every rank, so that
   weightcast_resume() may follow. On failure as weightcast_pause(). One that does not go on calls
   weightcast_abandon(): the engine is invalid then, and the job step fails. */
WEIGHTCAST_API int weightcast_landed(weightcast_export* e, int* numbers, int most, int* count);

/* Of an engine: what follows from the new weights has been rebuilt, and it uses them. */
WEIGHTCAST_API int weightcast_resume(weightcast_export* e);

/* Weights of an engine in the form that they have now, to be kept in place of a pointer. */
typedef struct weightcast_reference {
  uint64_t generation; /* of the export */
  uint64_t form;
  int entry;
} weightcast_reference;

/* Refers to an entry of an engine by a name. WEIGHTCAST_IS_INVALID where the memory holds no version, so that
   its weights have no final form yet, WEIGHTCAST_REFUSED between weightcast_pause() and weightcast_resume().
 */
WEIGHTCAST_API int weightcast_refer(const weightcast_export* e, const char* name,
                                    weightcast_reference* reference);

/* Where these weights are, and how many bytes of elements (NULL: not asked): to be used at once, and asked
   again for the next use. WEIGHTCAST_STALE where an update has been committed since the weights were referred
   to, the engine has loaded itself anew (weightcast_serve), or experts have moved; otherwise it fails as
   weightcast_refer(). A pointer that is kept stays readable memory until the export is closed, and what is
   there the one who keeps it has to know. */
WEIGHTCAST_API int weightcast_resolve(const weightcast_export* e, const weightcast_reference* reference,
                                      void** memory, int64_t* bytes);

/* Of an engine that is asked: it will not be written now; `reason` is for whoever asked. */
WEIGHTCAST_API int weightcast_decline(weightcast_export* e, const char* reason);

/* Of an engine whose memory holds no version any more, because it could not use what was committed, or because
   something else writes there, a loader of its own for example: until an update has been committed, or
   weightcast_serve(). On all its ranks. WEIGHTCAST_REFUSED while a job step asks or writes. */
WEIGHTCAST_API int weightcast_invalidate(weightcast_export* e, const char* reason);

/* Of a trainer, whose parameters are version `version` and stay so: waits up to `seconds` until a job step
   has read them on every rank, as weightcast_settle(). What was offered before is replaced where no job step
   has begun to read it; while one reads it the new offer waits, and is not made where `seconds` are over
   first (WEIGHTCAST_NO_ANSWER). 0 seconds never wait: WEIGHTCAST_OK then says that the version is offered,
   not that it has been read, and weightcast_settle() says when the parameters may change; while an earlier
   one is being read the call is refused. A caller whose time for an update may be used up calls
   weightcast_settle() in any case. */
WEIGHTCAST_API int weightcast_offer(weightcast_export* e, int64_t version, double seconds);

/* Of a trainer: waits up to `seconds` for the end of what it offers; once a job step reads, until that ends.
   An offer that no job step has begun to read when the time is over is withdrawn, and the parameters may
   change; WEIGHTCAST_NO_ANSWER says so. */
WEIGHTCAST_API int weightcast_settle(weightcast_export* e, double seconds);

#ifdef __cplusplus
}
#endif

#endif
