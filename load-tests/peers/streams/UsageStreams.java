import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.state.KeyValueStore;

/** Kafka Streams with a state store, exactly once: tokens by customer. `UsageStreams BROKERS TOPIC COUNT STATE_FOLDER` */
public final class UsageStreams {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final OperatingSystemMXBean SYSTEM =
        (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    private static final AtomicLong SEEN = new AtomicLong();
    private static volatile long began;
    private static volatile long cpu;

    public static void main(String[] words) {
        long count = Long.parseLong(words[2]);
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "peer-" + UUID.randomUUID().toString().substring(0, 8));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, words[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, words[3]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put("auto.offset.reset", "earliest");

        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(words[1], Consumed.with(Serdes.String(), Serdes.ByteArray()))
            .mapValues(UsageStreams::tokens)
            .groupByKey(Grouped.with(Serdes.String(), Serdes.Long()))
            .aggregate(
                () -> 0L,
                (customer, tokens, total) -> { seen(count); return total + tokens; },
                Materialized.<String, Long, KeyValueStore<Bytes, byte[]>>as("tokens")
                    .withKeySerde(Serdes.String()).withValueSerde(Serdes.Long()));
        new KafkaStreams(builder.build(), settings).start();
    }

    private static long tokens(byte[] value) {
        try {
            JsonNode event = JSON.readTree(value);
            return event.get("data").get("tokens").longValue();
        } catch (java.io.IOException error) {
            throw new IllegalArgumentException(error);
        }
    }

    private static void seen(long count) {
        long number = SEEN.incrementAndGet();
        if (number == 1) {
            began = System.nanoTime();
            cpu = SYSTEM.getProcessCpuTime();
        }
        if (number == count) {
            double seconds = (System.nanoTime() - began) / 1e9;
            double spent = (SYSTEM.getProcessCpuTime() - cpu) / 1e9;
            System.out.printf(
                java.util.Locale.ROOT, "{\"events\": %d, \"seconds\": %.4f, \"cpu_seconds\": %.4f}%n", number, seconds, spent);
            System.out.flush();
            Runtime.getRuntime().halt(0);
        }
    }
}
