/* What an exporter may publish. The client refuses at the call what a job step would refuse to read, because
   both ask here. C and C++. */
#ifndef WEIGHTCAST_CLIENT_ENTRY_RULES_H
#define WEIGHTCAST_CLIENT_ENTRY_RULES_H

#include <stdint.h>

/* Dimensions of a tensor. */
#define WEIGHTCAST_MOST_DIMS 5

/* Where an entry ends in its segment: the byte behind its last element, `offset` where it has none. Negative
   when one of its numbers is, or when they are too large to count its elements or its bytes. `strides` are in
   elements, `element` is the bytes of one. */
static inline int64_t weightcast_end_of_entry(int dims, const int64_t* shape, const int64_t* strides,
                                              int64_t offset, int64_t element) {
  int64_t elements = 1;
  int64_t end = 1;
  int empty = 0;
  if (offset < 0) return -1;
  for (int i = 0; i < dims; ++i) {
    const int64_t extent = shape[i] > 1 ? shape[i] : 1;
    int64_t step = 0;
    if (shape[i] < 0 || strides[i] < 0) return -1;
    if (shape[i] == 0) empty = 1;
    if (__builtin_mul_overflow(elements, extent, &elements) ||
        __builtin_mul_overflow(extent - 1, strides[i], &step) || __builtin_add_overflow(end, step, &end)) {
      return -1;
    }
  }
  if (empty) return offset;
  if (__builtin_mul_overflow(elements, element, &elements) || __builtin_mul_overflow(end, element, &end) ||
      __builtin_add_overflow(end, offset, &end)) {
    return -1;
  }
  return end;
}

/* Whether an entry of that shape can be the box of a tensor of shape `whole` from element `start` on. */
static inline int weightcast_is_box(int dims, const int64_t* shape, const int64_t* whole,
                                    const int64_t* start) {
  int64_t elements = 1;
  for (int i = 0; i < dims; ++i) {
    const int64_t extent = whole[i] > 1 ? whole[i] : 1;
    if (whole[i] < shape[i] || start[i] < 0 || start[i] > whole[i] - shape[i]) return 0;
    if (__builtin_mul_overflow(elements, extent, &elements)) return 0;
  }
  return 1;
}

#endif
