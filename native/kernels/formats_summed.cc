// The same super-blocks summed in integers, for rows of span 256 (super_tile.h): where a matrix unit gains by it.
#include "packed_linear.h"

OCTAVO_BEGIN

#if HAS_MATRIX_TILES
OCTAVO_ENTRIES(formats_summed,
               {"format.q2_k.p32.k4.1.s256", &kSummed<Q2_K>},
               {"format.q3_k.p32.k4.1.s256", &kSummed<Q3_K>},
               {"format.q4_k.p32.k4.1.s256", &kSummed<Q4_K>},
               {"format.q5_k.p32.k4.1.s256", &kSummed<Q5_K>},
               {"format.q6_k.p32.k4.1.s256", &kSummed<Q6_K>},
               {"format.iq4_xs.p32.k4.1.s256", &kSummed<Iq4_xs>})
#else
extern const Entry formats_summed_entries[] = {{nullptr, nullptr}};
extern const i64 formats_summed_entry_count = 0;
#endif

OCTAVO_END
