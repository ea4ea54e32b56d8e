// Super-blocks of 256 k that are common: see formats.cc.
#include "packed_linear.h"

OCTAVO_BEGIN

OCTAVO_ENTRIES(formats_super,
               {"format.q2_k.p32.k4.1", &kGrouped<Q2_K>},
               {"format.q3_k.p32.k4.1", &kGrouped<Q3_K>},
               {"format.q4_k.p32.k4.1", &kGrouped<Q4_K>},
               {"format.q5_k.p32.k4.1", &kGrouped<Q5_K>},
               {"format.q6_k.p32.k4.1", &kGrouped<Q6_K>},
               {"format.iq4_xs.p32.k4.1", &kGrouped<Iq4_xs>})

OCTAVO_END
